"""All SQL about jobs. Every function takes an open session and leaves the commit to its caller."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, text, tuple_
from sqlalchemy.orm import Session, aliased

from elder_service.db.models import ArtifactRow, IdempotencyRow, JobEventRow, JobRow
from elder_service.errors import InvalidCursor, JobNotFound
from elder_service.jobs import events
from elder_service.jobs.hardware import Capacity, Device, Needs
from elder_service.jobs.states import ACTIVE, TRANSITIONS, Status

EVENT_PAGE_LIMIT = 1000
PASS_LIMIT = 1000  # rows of a kind in one pass of reconcile: a transaction that others wait for; the next has the rest
_CLAIM_LOCK = 0x454C434C  # "ELCL"


@dataclass(frozen=True)
class JobFilter:
    statuses: tuple[Status, ...] = ()
    method: str | None = None
    created_after: datetime | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def get(session: Session, job_id: str, *, lock: bool = False) -> JobRow:
    """The job's row, locked against other writers if asked for.

    Raises:
        JobNotFound: there is none of that id.
    """
    statement = select(JobRow).where(JobRow.id == job_id)
    if lock:
        statement = statement.with_for_update()
    row = session.scalars(statement.execution_options(populate_existing=True)).one_or_none()
    if row is None:
        raise JobNotFound(f"There is no job {job_id!r}.")
    return row


def lock_attempt(session: Session, job_id: str, attempt: int) -> JobRow | None:
    """The job's row, locked, if `attempt` still holds it; None means that the attempt lost the job and must stop."""
    return session.scalars(
        select(JobRow)
        .where(JobRow.id == job_id, JobRow.attempt == attempt, JobRow.status.in_(ACTIVE))
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()


def held_by(session: Session, owner: str) -> list[JobRow]:
    """The jobs, locked, whose lease `owner` has."""
    held = select(JobRow).where(JobRow.lease_owner == owner, JobRow.status.in_(ACTIVE)).with_for_update()
    return list(session.scalars(held))


def next_claimable(
    session: Session,
    now: datetime,
    capacity: Capacity | None,
    max_running_per_owner: int | None,
    passed_over: Collection[str] = (),
) -> JobRow | None:
    """The job to run next, locked; rows that another worker is just claiming are passed over, as are `passed_over`.

    Only jobs that `capacity` can hold, and of owners with fewer than `max_running_per_owner` running; None: any.
    """
    conditions = [JobRow.id.not_in(passed_over), *(_held_by(capacity) if capacity else ())]
    if max_running_per_owner is not None:
        _one_claim_at_a_time(session)
        conditions.append(JobRow.owner.not_in(_owners_at(max_running_per_owner)))
    return session.scalars(
        select(JobRow)
        .where(
            JobRow.status == Status.QUEUED,
            JobRow.available_at <= now,
            or_(JobRow.queue_deadline_at.is_(None), JobRow.queue_deadline_at > now),
            *conditions,
        )
        .order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).one_or_none()


def _held_by(capacity: Capacity) -> Iterator[ColumnElement[bool]]:
    yield or_(JobRow.needs_device.is_(None), JobRow.needs_device == capacity.device)
    if capacity.memory_bytes is not None:
        yield or_(JobRow.needs_memory_bytes.is_(None), JobRow.needs_memory_bytes <= capacity.memory_bytes)


def _owners_at(limit: int) -> Select[str]:
    running = aliased(JobRow)  # on its own: the row to claim is not part of this count
    return select(running.owner).where(running.status.in_(ACTIVE)).group_by(running.owner).having(func.count() >= limit)


def _one_claim_at_a_time(session: Session) -> None:
    """Two that count at the same moment would both see room for one. SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CLAIM_LOCK})


def list_jobs(session: Session, where: JobFilter, *, after: str | None, limit: int) -> tuple[list[JobRow], bool]:
    """Jobs from newest to oldest, older than the job `after`; and whether there are more.

    Raises:
        InvalidCursor: `after` names no job.
    """
    statement = select(JobRow).where(*_conditions(where))
    if after is not None:
        cursor = session.get(JobRow, after)
        if cursor is None:
            raise InvalidCursor(f"after is {after!r}, which names no job; use the last_id of a page.", loc=("after",))
        statement = statement.where(tuple_(JobRow.created_at, JobRow.id) < (cursor.created_at, cursor.id))
    statement = statement.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)
    rows = list(session.scalars(statement))
    return rows[:limit], len(rows) > limit


def _conditions(where: JobFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if where.statuses:
        conditions.append(JobRow.status.in_(where.statuses))
    if where.method is not None:
        conditions.append(JobRow.method == where.method)
    if where.created_after is not None:
        conditions.append(JobRow.created_at > where.created_after)
    conditions.extend(JobRow.job_metadata[key].as_string() == value for key, value in where.metadata.items())
    return conditions


def queued_before(session: Session, rows: Sequence[JobRow]) -> dict[str, dict[Needs, int]]:
    """For those of `rows` that are queued, by id: how many jobs are before it in the queue, by what they need."""
    job, other = aliased(JobRow), aliased(JobRow)
    goes_first = or_(
        other.priority > job.priority,
        and_(other.priority == job.priority, tuple_(other.created_at, other.id) < tuple_(job.created_at, job.id)),
    )
    counted = (
        select(job.id, other.needs_device, other.needs_memory_bytes, func.count(other.id))
        .outerjoin(other, and_(other.status == Status.QUEUED, goes_first))
        .where(job.status == Status.QUEUED, job.id.in_([row.id for row in rows]))
        .group_by(job.id, other.needs_device, other.needs_memory_bytes)
    )
    found: dict[str, dict[Needs, int]] = {}
    for job_id, device, memory_bytes, count in session.execute(counted):
        needs = Needs(Device(device) if device else None, memory_bytes)
        found.setdefault(job_id, {})[needs] = count
    return found


def running_by_owner(session: Session) -> dict[str, int]:
    counted = select(JobRow.owner, func.count()).where(JobRow.status.in_(ACTIVE)).group_by(JobRow.owner)
    return {row[0]: row[1] for row in session.execute(counted)}


def running_since(session: Session) -> dict[str, datetime]:
    """When the running attempt of each worker was started, by the worker's id."""
    started = select(JobRow.lease_owner, JobRow.started_at).where(JobRow.status.in_(ACTIVE))
    return {owner: begun for owner, begun in session.execute(started) if owner and begun}


def recent_durations(session: Session, count: int) -> list[float]:
    """Seconds that the last attempts which succeeded took."""
    ended = (
        select(JobRow.started_at, JobRow.finished_at)
        .where(JobRow.status == Status.SUCCEEDED)
        .order_by(JobRow.created_at.desc())
        .limit(count)
    )
    return [(finished - begun).total_seconds() for begun, finished in session.execute(ended) if begun and finished]


def last_failure(session: Session, job_id: str) -> dict[str, Any] | None:
    """The error of the attempt that ended last and was tried again; None if it was none of its own."""
    requeued = (
        select(JobEventRow.data)
        .where(JobEventRow.job_id == job_id, JobEventRow.type == events.REQUEUED)
        .order_by(JobEventRow.seq.desc())
        .limit(1)
    )
    data = session.scalars(requeued).one_or_none()
    return data.get("error") if data else None


def move(row: JobRow, to: Status) -> None:
    """Change the row's status, which must be a transition of the table."""
    assert to in TRANSITIONS[Status(row.status)], f"{row.status} → {to}"
    row.status = to


def add_event(session: Session, row: JobRow, kind: str, at: datetime, data: dict[str, Any]) -> None:
    """Append an event in the transaction of what it tells; the row must be locked or new."""
    row.last_event_seq += 1
    session.add(JobEventRow(job_id=row.id, seq=row.last_event_seq, type=kind, at=at, data=data))


def events_after(session: Session, job_id: str, seq: int, limit: int = EVENT_PAGE_LIMIT) -> list[JobEventRow]:
    return list(
        session.scalars(
            select(JobEventRow)
            .where(JobEventRow.job_id == job_id, JobEventRow.seq > seq)
            .order_by(JobEventRow.seq)
            .limit(limit)
        )
    )


def artifacts(session: Session, job_id: str) -> list[ArtifactRow]:
    return list(session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name)))


def artifact(session: Session, job_id: str, name: str) -> ArtifactRow | None:
    return session.scalars(
        select(ArtifactRow).where(ArtifactRow.job_id == job_id, ArtifactRow.name == name)
    ).one_or_none()


@dataclass(frozen=True)
class Standing:
    """A job's status, and the attempt that holds it at this moment. Once one does not, it never will again."""

    status: Status
    attempt: int | None


def standing(session: Session, job_ids: Collection[str]) -> dict[str, Standing]:
    """How those of the jobs stand that are there."""
    rows = session.execute(select(JobRow.id, JobRow.status, JobRow.attempt).where(JobRow.id.in_(job_ids)))
    return {job_id: Standing(Status(status), attempt if status in ACTIVE else None) for job_id, status, attempt in rows}


def artifact_keys(session: Session, job_ids: Collection[str]) -> list[str]:
    """Where the files of the jobs lie that callers see."""
    return list(session.scalars(select(ArtifactRow.storage_key).where(ArtifactRow.job_id.in_(job_ids))))


def idempotency(session: Session, owner: str, key: str, since: datetime) -> IdempotencyRow | None:
    row = session.get(IdempotencyRow, (owner, key))
    if row is not None and row.created_at < since:
        session.delete(row)
        session.flush()
        return None
    return row


def expired_leases(session: Session, now: datetime) -> list[JobRow]:
    return list(
        session.scalars(
            select(JobRow)
            .where(JobRow.status.in_(ACTIVE), JobRow.lease_expires_at < now)
            .limit(PASS_LIMIT)
            .with_for_update(skip_locked=True)
        )
    )


def past_queue_deadline(session: Session, now: datetime) -> list[JobRow]:
    return list(
        session.scalars(
            select(JobRow)
            .where(JobRow.status == Status.QUEUED, JobRow.queue_deadline_at <= now)
            .limit(PASS_LIMIT)
            .with_for_update(skip_locked=True)
        )
    )


def unhinted(session: Session, now: datetime, again_after: timedelta) -> list[JobRow]:
    """Claimable jobs whose hint was never sent, or so long ago that it may be lost."""
    return list(
        session.scalars(
            select(JobRow)
            .where(
                and_(
                    JobRow.status == Status.QUEUED,
                    JobRow.available_at <= now,
                    or_(JobRow.hinted_at.is_(None), JobRow.hinted_at < now - again_after),
                )
            )
            .order_by(JobRow.created_at)
            .limit(PASS_LIMIT)
            .with_for_update(skip_locked=True)
        )
    )
