"""What callers can do to jobs. Each function runs in its caller's transaction; hints are sent after the commit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from elder_core.spec import JobSpec
from elder_service.db.engine import database_now
from elder_service.db.models import DEFAULT_OWNER, IdempotencyRow, JobRow
from elder_service.errors import IdempotencyMismatch
from elder_service.ids import new_id
from elder_service.jobs import events, repository
from elder_service.jobs.hardware import Needs
from elder_service.jobs.states import Status

PRIORITIES = {"low": -1, "normal": 0, "high": 1}
IDEMPOTENCY_LIFE = timedelta(hours=24)


@dataclass(frozen=True)
class Submission:
    """A job as its caller asked for it, already checked."""

    spec: JobSpec
    max_attempts: int
    priority: str = "normal"
    max_runtime_seconds: int | None = None
    max_queue_seconds: int | None = None
    metadata: dict[str, str] | None = None
    idempotency_key: str | None = None
    owner: str = DEFAULT_OWNER
    needs: Needs = field(default_factory=Needs)
    # Noted with the job itself: a claim passes over a row that is locked, as one would be that is noted afterwards.
    hint_follows: bool = False

    stated_needs: Needs = field(default_factory=Needs)  # without what was estimated

    def body(self) -> dict[str, Any]:
        """What a second use of the same Idempotency-Key must have in common with the first."""
        stated = {"needs": asdict(self.stated_needs)} if self.stated_needs != Needs() else {}
        return {
            **stated,
            "spec": self.spec.model_dump(mode="json"),
            "priority": self.priority,
            "max_runtime_seconds": self.max_runtime_seconds,
            "max_queue_seconds": self.max_queue_seconds,
            "metadata": self.metadata or {},
        }

    def body_hash(self) -> str:
        return hashlib.sha256(json.dumps(self.body(), sort_keys=True).encode()).hexdigest()


def replayed(session: Session, submission: Submission) -> JobRow | None:
    """The job that the key of `submission`, if it has one, has created in the last 24 hours.

    Raises:
        IdempotencyMismatch: the key came with another body then, from the same owner.
    """
    if submission.idempotency_key is None:
        return None
    since = database_now(session) - IDEMPOTENCY_LIFE
    known = repository.idempotency(session, submission.owner, submission.idempotency_key, since)
    if known is None:
        return None
    if known.body_hash != submission.body_hash():
        raise IdempotencyMismatch(
            f"Idempotency-Key {known.key!r} was used with another body, for {known.job_id}; "
            "use a new key for a new job."
        )
    return repository.get(session, known.job_id)


def submit(session: Session, submission: Submission) -> tuple[JobRow, bool]:
    """Store the job, its first event and its idempotency record together.

    Returns the row and whether it is new: a key that its owner used in the last 24 hours returns the job that it
    created.

    Raises:
        IdempotencyMismatch: the key came with another body before, from the same owner.
        sqlalchemy.exc.IntegrityError: the same key is being used at this moment; try again.
    """
    known = replayed(session, submission)
    if known is not None:
        return known, False
    now = database_now(session)
    row = JobRow(
        id=new_id("job"),
        status=Status.QUEUED,
        method=submission.spec.method.name,
        spec=submission.spec.model_dump(mode="json"),
        job_metadata=submission.metadata or {},
        owner=submission.owner,
        needs_device=submission.needs.device,
        needs_memory_bytes=submission.needs.memory_bytes,
        priority=PRIORITIES[submission.priority],
        max_runtime_seconds=submission.max_runtime_seconds,
        max_queue_seconds=submission.max_queue_seconds,
        created_at=now,
        available_at=now,
        hinted_at=now if submission.hint_follows else None,
        queue_deadline_at=now + timedelta(seconds=submission.max_queue_seconds)
        if submission.max_queue_seconds is not None
        else None,
        attempt=0,
        failures=0,
        max_attempts=submission.max_attempts,
        stage_history=[],
        last_event_seq=0,
    )
    session.add(row)
    session.flush()
    if submission.idempotency_key is not None:
        session.add(
            IdempotencyRow(
                owner=submission.owner,
                key=submission.idempotency_key,
                body_hash=submission.body_hash(),
                job_id=row.id,
                created_at=now,
            )
        )
    repository.add_event(session, row, events.CREATED, now, {"method": row.method})
    session.flush()
    return row, True


def cancel(session: Session, job_id: str) -> JobRow:
    """Cancel a queued job at once, ask a running one to stop, and leave an ended one as it is."""
    row = repository.get(session, job_id, lock=True)
    now = database_now(session)
    if row.status == Status.QUEUED:
        repository.move(row, Status.CANCELLED)
        row.cancel_requested_at = row.finished_at = now
        repository.add_event(session, row, events.CANCELLED, now, {})
    elif row.status == Status.RUNNING:
        repository.move(row, Status.CANCELLING)
        row.cancel_requested_at = now
        repository.add_event(session, row, events.CANCELLING, now, {})
    return row


def hint_lost(session: Session, job_id: str) -> None:
    row = repository.get(session, job_id, lock=True)
    row.hinted_at = None
