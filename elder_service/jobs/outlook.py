"""What a queued job waits for, and when it may start."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from elder_service.db.models import JobRow
from elder_service.jobs import repository, workers
from elder_service.jobs.hardware import Capacity, Device, Needs, gigabytes

RECENT_JOBS = 20


@dataclass(frozen=True)
class Outlook:
    """Of a queued job. `position` 1 is next; `starts_at` is an estimate, None where nothing is known to base it on.

    `waiting_for` says in a sentence what keeps it from starting, if that is more than the jobs before it.
    """

    position: int
    starts_at: datetime | None = None
    waiting_for: str | None = None


def outlooks(
    session: Session, rows: Sequence[JobRow], now: datetime, max_running_per_owner: int | None
) -> dict[str, Outlook]:
    """By id, for those of `rows` that are queued."""
    positions = repository.queue_positions(session, rows)
    if not positions:
        return {}
    there = [workers.capacity_of(row) for row in workers.present(session)]
    free = _free_seconds(session, len(there), now)
    running = repository.running_by_owner(session) if max_running_per_owner else {}
    found = {}
    for row in rows:
        if row.id not in positions:
            continue
        hindrance = _unheld(needs_of(row), there)
        if max_running_per_owner and running.get(row.owner, 0) >= max_running_per_owner:
            hindrance = hindrance or f"{row.owner} has {max_running_per_owner} jobs running, as many as one owner may."
        place = positions[row.id]
        wait = None if hindrance or free is None else _wait_seconds(free, place)
        starts = None if wait is None else max(now + timedelta(seconds=wait), row.available_at)
        found[row.id] = Outlook(place, starts, hindrance)
    return found


def needs_of(row: JobRow) -> Needs:
    return Needs(Device(row.needs_device) if row.needs_device else None, row.needs_memory_bytes)


def _unheld(needs: Needs, there: Sequence[Capacity]) -> str | None:
    if not there:
        return "No worker is running."
    if any(needs.held_by(capacity) for capacity in there):
        return None
    sizes = [capacity.memory_bytes or 0 for capacity in there if needs.device in (None, capacity.device)]
    most = f"the largest has {gigabytes(max(sizes))}" if sizes else "none is of that kind"
    return f"It needs {needs}; {most}. It starts when such a worker is there."


@dataclass(frozen=True)
class _Free:
    """In how many seconds each worker is free, and how long a job takes."""

    seconds: tuple[float, ...]
    typical: float


def _free_seconds(session: Session, count: int, now: datetime) -> _Free | None:
    """None without a worker, or before any job has succeeded."""
    lasted = repository.recent_durations(session, RECENT_JOBS)
    if not count or not lasted:
        return None
    typical = statistics.median(lasted)
    started = repository.running_since(session)[:count]
    left = [max(0.0, typical - (now - begun).total_seconds()) for begun in started]
    return _Free((*left, *[0.0] * (count - len(left))), typical)


def _wait_seconds(free: _Free, position: int) -> float:
    """Each job before it goes to the worker that is free first."""
    queue = list(free.seconds)
    heapq.heapify(queue)
    for _ in range(position - 1):
        heapq.heapreplace(queue, queue[0] + free.typical)
    return queue[0]
