"""What a queued job waits for, and when it may start."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from elder_service.db.models import JobRow
from elder_service.jobs import repository, workers
from elder_service.jobs.hardware import Capacity, Device, Needs, gigabytes

RECENT_JOBS = 20


@dataclass(frozen=True)
class Outlook:
    """Of a queued job, among the workers that are there and can hold it.

    `position` 1 is next: only jobs before it that one of those workers can hold as well are counted; None while there
    is no such worker. `starts_at` is an estimate, None where nothing is known to base it on. `waiting_for` says in a
    sentence what keeps it from starting, if that is more than the jobs before it.
    """

    position: int | None
    starts_at: datetime | None = None
    waiting_for: str | None = None


@dataclass(frozen=True)
class _Worker:
    """One that is there; `busy_since`: when the attempt that it runs was started."""

    capacity: Capacity
    busy_since: datetime | None


def outlooks(
    session: Session, rows: Sequence[JobRow], now: datetime, max_running_per_owner: int | None
) -> dict[str, Outlook]:
    """By id, for those of `rows` that are queued."""
    before = repository.queued_before(session, rows)
    if not before:
        return {}
    there = list(_workers(session))
    lasted = repository.recent_durations(session, RECENT_JOBS)
    typical = statistics.median(lasted) if lasted else None
    running = repository.running_by_owner(session) if max_running_per_owner else {}
    found = {}
    for row in rows:
        if row.id in before:
            found[row.id] = _outlook(row, before[row.id], there, typical, now)
            if max_running_per_owner and running.get(row.owner, 0) >= max_running_per_owner:
                limit = f"{row.owner} has {max_running_per_owner} jobs running, as many as one owner may."
                seen = found[row.id]
                found[row.id] = Outlook(seen.position, None, seen.waiting_for or limit)
    return found


def _outlook(
    row: JobRow, before: Mapping[Needs, int], there: Sequence[_Worker], typical: float | None, now: datetime
) -> Outlook:
    able = [worker for worker in there if needs_of(row).held_by(worker.capacity)]
    if not able:
        return Outlook(None, None, _unheld(needs_of(row), there))
    position = 1 + _rivals(before, able)
    if typical is None:
        return Outlook(position)
    wait = _wait_seconds(able, position, typical, now)
    return Outlook(position, max(now + timedelta(seconds=wait), row.available_at))


def needs_of(row: JobRow) -> Needs:
    return Needs(Device(row.needs_device) if row.needs_device else None, row.needs_memory_bytes)


def _workers(session: Session) -> Iterator[_Worker]:
    busy_since = repository.running_since(session)
    for row in workers.present(session):
        yield _Worker(workers.capacity_of(row), busy_since.get(row.id))


def _unheld(needs: Needs, there: Sequence[_Worker]) -> str:
    if not there:
        return "No worker is running."
    sizes = [worker.capacity.memory_bytes or 0 for worker in there if needs.device in (None, worker.capacity.device)]
    most = f"the largest has {gigabytes(max(sizes))}" if sizes else "none is of that kind"
    return f"It needs {needs}; {most}. It starts when such a worker is there."


def _rivals(before: Mapping[Needs, int], able: Sequence[_Worker]) -> int:
    """How many of the jobs before one may take a worker that it could have."""
    return sum(count for needs, count in before.items() if any(needs.held_by(worker.capacity) for worker in able))


def _wait_seconds(able: Sequence[_Worker], position: int, typical: float, now: datetime) -> float:
    """Each job before it goes to the worker that is free first, and takes the `typical` seconds."""
    free = [
        max(0.0, typical - (now - worker.busy_since).total_seconds()) if worker.busy_since else 0.0 for worker in able
    ]
    heapq.heapify(free)
    for _ in range(position - 1):
        heapq.heapreplace(free, free[0] + typical)
    return free[0]
