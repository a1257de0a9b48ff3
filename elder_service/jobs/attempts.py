"""The life of one attempt: claimed, renewed, ended. Every write is fenced by the attempt's number.

Each function runs in its caller's transaction. LeaseLost means: another attempt, or nobody, holds the job now; stop,
and write nothing more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from elder_core.errors import ElderError, OutOfMemory
from elder_core.spec import JobSpec, Progress
from elder_service.backoff import backoff_seconds
from elder_service.db.engine import database_now, is_passing
from elder_service.db.models import ArtifactRow, JobRow
from elder_service.errors import UnreadableSpec, WorkerLost
from elder_service.ids import new_id
from elder_service.jobs import events, repository
from elder_service.jobs.hardware import Capacity
from elder_service.jobs.progress import fraction_done
from elder_service.jobs.states import ACTIVE, Status
from elder_service.jobs.text import storable
from elder_service.storage.base import StoredFile

MOST_DELAY_SECONDS = 3600.0
UNREADABLE_DELAY_SECONDS = 30.0
UNREADABLE_LIFE = timedelta(days=1)  # a roll-out whose new workers take longer to come has gone wrong

_log = logging.getLogger(__name__)


class LeaseLost(Exception):  # an ending, not an error
    """The attempt no longer holds its job."""


@dataclass(frozen=True)
class Claim:
    """A job that this worker holds until the lease expires or it says how the attempt ended."""

    job_id: str
    attempt: int
    spec: JobSpec
    max_runtime_seconds: int | None


@dataclass(frozen=True)
class Outcome:
    """What a successful attempt hands over: the figures for the job's row, and the files already in storage."""

    result: dict[str, Any]
    files: tuple[StoredFile, ...] = field(default=())


def claim(
    session: Session,
    owner: str,
    lease_seconds: float,
    capacity: Capacity | None = None,
    max_running_per_owner: int | None = None,
) -> Claim | None:
    """Take the next job, by priority and then by age; None when there is nothing to do.

    One that needs more than `capacity` is left for another worker, and one of an owner who has
    `max_running_per_owner` jobs running for later.

    A job that this version cannot read is put back for longer and longer, since a worker of a newer one may be there
    soon, and fails when it is a day old: left alone it would stay first in the queue for ever. One whose row cannot be
    written is passed over, and the log says why.
    """
    now = database_now(session)
    tried: list[str] = []
    while (row := repository.next_claimable(session, now, capacity, max_running_per_owner, tried)) is not None:
        tried.append(row.id)
        with apart(session, row):
            _start(session, row, owner, lease_seconds, now)
            try:
                spec = JobSpec.model_validate(row.spec)
            except ValidationError as error:
                _put_back(session, row, _unreadable(error), now)
            else:
                session.flush()
                return Claim(row.id, row.attempt, spec, row.max_runtime_seconds)
    return None


@contextmanager
def apart(session: Session, row: JobRow) -> Iterator[None]:
    """What fails within, of this row, is undone and logged, and the transaction goes on: one broken row must not stop
    all the others.

    Raises:
        SQLAlchemyError: the database is away, for every row alike.
    """
    job_id = row.id
    try:
        with session.begin_nested():
            yield
    except Exception as error:
        if isinstance(error, SQLAlchemyError) and is_passing(error):
            raise
        _log.exception("%s: its row is passed over, for what was to be written to it fails", job_id)


def _start(session: Session, row: JobRow, owner: str, lease_seconds: float, now: datetime) -> None:
    repository.move(row, Status.RUNNING)
    row.attempt += 1
    row.lease_owner = owner
    row.lease_expires_at = now + timedelta(seconds=lease_seconds)
    row.started_at = now
    row.queue_deadline_at = None  # it was met, though the attempt may be lost
    row.stage, row.progress, row.stage_history, row.error = None, None, [], None
    repository.add_event(session, row, events.STARTED, now, {"attempt": row.attempt, "worker": owner})


def _put_back(session: Session, row: JobRow, error: UnreadableSpec, now: datetime) -> None:
    """For another version to read, which is no failure of the job; until it is too old for that."""
    described = _described(row, error, {})
    if now - row.created_at > UNREADABLE_LIFE:
        _end_failed(session, row, described, now)
        return
    delay = _delay(UNREADABLE_DELAY_SECONDS, row.attempt)
    _requeue(session, row, now, delay=delay, data={"reason": described["message"], "error": described})


def _unreadable(error: ValidationError) -> UnreadableSpec:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the whole of it"
    return UnreadableSpec(
        f"This version of the service cannot read the job's specification: {where}: {first['msg']}. "
        "Another version wrote it: let no worker of an older version run, and submit the job again if it has failed."
    )


def renew(session: Session, held: Claim, lease_seconds: float) -> None:
    """Extend the lease."""
    row = _locked(session, held)
    row.lease_expires_at = database_now(session) + timedelta(seconds=lease_seconds)


def cancel_requested(session: Session, held: Claim) -> bool:
    row = repository.get(session, held.job_id)
    if row.attempt != held.attempt or row.status not in ACTIVE:
        raise LeaseLost
    return row.status == Status.CANCELLING


def record_progress(session: Session, held: Claim, progress: Progress, *, event: bool) -> None:
    """Note where the attempt is; with `event`, or on a new stage, in the job's log as well."""
    row = _locked(session, held)
    now = database_now(session)
    if row.stage != progress.stage:
        _enter_stage(session, row, progress, now)
    row.progress = {
        "stage": progress.stage,
        "step": progress.step,
        "total": progress.total,
        "fraction": fraction_done(progress),
        # JSON has no word for NaN, which PostgreSQL refuses; whether it ends the job is the method's to say
        "metrics": {name: value for name, value in progress.metrics.items() if math.isfinite(value)},
        "updated_at": now.isoformat(),
    }
    if event:
        repository.add_event(session, row, events.PROGRESS, now, {"attempt": row.attempt, **row.progress})


def _enter_stage(session: Session, row: JobRow, progress: Progress, now: datetime) -> None:
    row.stage = progress.stage
    _finish_stage(row, now)
    started = {"stage": progress.stage, "started_at": now.isoformat(), "finished_at": None}
    row.stage_history = [*row.stage_history, started]
    repository.add_event(session, row, events.STAGE, now, {"attempt": row.attempt, "stage": progress.stage})


def _finish_stage(row: JobRow, now: datetime) -> None:
    if row.stage_history:
        last = {**row.stage_history[-1], "finished_at": now.isoformat()}
        row.stage_history = [*row.stage_history[:-1], last]


def succeed(session: Session, held: Claim, outcome: Outcome) -> None:
    """The fenced last update: it alone makes the attempt's files visible."""
    row = _locked(session, held)
    now = database_now(session)
    _end(row, Status.SUCCEEDED, now)
    row.result = outcome.result
    for file in outcome.files:
        session.add(
            ArtifactRow(
                id=new_id("art"),
                job_id=row.id,
                name=file.name,
                kind=file.kind,
                storage_key=file.key,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                created_at=now,
            )
        )
    repository.add_event(session, row, events.SUCCEEDED, now, outcome.result)


def fail(
    session: Session, held: Claim, error: ElderError, retry_delay_seconds: float, details: dict[str, Any] | None = None
) -> None:
    """The attempt ended with `error`: try again if that may help and attempts are left, else the job failed."""
    _failed(session, _locked(session, held), error, retry_delay_seconds, details or {})


def cancelled(session: Session, held: Claim) -> None:
    """The child of a cancelled job is gone."""
    row = _locked(session, held)
    _end_cancelled(session, row, database_now(session))


def give_back(session: Session, held: Claim) -> None:
    """A draining worker returns its job: queued again at once, and the attempt does not count."""
    _given_back(session, _locked(session, held), "worker stopped")


def give_back_unknown(session: Session, owner: str) -> None:
    """Return what `owner`, who runs nothing, holds all the same: the answer to its claim was lost on the way."""
    for row in repository.held_by(session, owner):
        _given_back(session, row, "the answer to the claim was lost")


def _given_back(session: Session, row: JobRow, reason: str) -> None:
    now = database_now(session)
    if row.status == Status.CANCELLING:
        _end_cancelled(session, row, now)
    else:
        _requeue(session, row, now, delay=timedelta(), data={"reason": reason})


def lease_expired(session: Session, row: JobRow, retry_delay_seconds: float) -> None:
    """The worker of `row` (locked) has been silent for too long."""
    error = WorkerLost(f"Worker {row.lease_owner} stopped renewing its lease in attempt {row.attempt}.")
    _failed(session, row, error, retry_delay_seconds, {})


def _failed(
    session: Session, row: JobRow, error: ElderError, retry_delay_seconds: float, details: dict[str, Any]
) -> None:
    now = database_now(session)
    if row.status == Status.CANCELLING:
        _end_cancelled(session, row, now)
        return
    row.failures += 1
    described = _described(row, error, details)
    if row.failures < row.max_attempts and _may_help(session, row, error):
        delay = _delay(retry_delay_seconds, row.failures)
        _requeue(session, row, now, delay=delay, data={"reason": described["message"], "error": described})
        return
    _end_failed(session, row, described, now)


def _described(row: JobRow, error: ElderError, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": storable(error.message),
        "stage": row.stage,
        "retryable": error.retryable,
        "details": details,
    }


def _delay(first_seconds: float, times: int) -> timedelta:
    return timedelta(seconds=backoff_seconds(first_seconds, times, MOST_DELAY_SECONDS))


def _may_help(session: Session, row: JobRow, error: ElderError) -> bool:
    """Whether to try again. What took the memory may have been somebody else, but not twice at the same place."""
    if not isinstance(error, OutOfMemory):
        return error.retryable
    before = repository.last_failure(session, row.id)
    return before is None or (before["code"], before["stage"]) != (error.code, row.stage)


def _requeue(session: Session, row: JobRow, now: datetime, *, delay: timedelta, data: dict[str, Any]) -> None:
    repository.move(row, Status.QUEUED)
    row.lease_owner = row.lease_expires_at = row.hinted_at = row.started_at = row.stage = None
    row.progress = None
    row.available_at = now + delay
    repository.add_event(session, row, events.REQUEUED, now, {"attempt": row.attempt, **data})


def _end(row: JobRow, status: Status, now: datetime) -> None:
    repository.move(row, status)
    _finish_stage(row, now)
    row.lease_owner = row.lease_expires_at = None
    row.finished_at = now


def _end_failed(session: Session, row: JobRow, described: dict[str, Any], now: datetime) -> None:
    _end(row, Status.FAILED, now)
    row.error = described
    repository.add_event(session, row, events.FAILED, now, {"error": described})


def _end_cancelled(session: Session, row: JobRow, now: datetime) -> None:
    _end(row, Status.CANCELLED, now)
    repository.add_event(session, row, events.CANCELLED, now, {})


def _locked(session: Session, held: Claim) -> JobRow:
    row = repository.lock_attempt(session, held.job_id, held.attempt)
    if row is None:
        raise LeaseLost
    return row
