"""Bring rows and reality together again: lost workers, missed deadlines, lost hints."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, text
from sqlalchemy.orm import Session

from elder_service.db.engine import database_now
from elder_service.db.models import IdempotencyRow
from elder_service.jobs import attempts, events, repository, workers
from elder_service.jobs.service import IDEMPOTENCY_LIFE
from elder_service.jobs.states import Status

HINT_AGAIN = timedelta(seconds=30)
_ADVISORY_LOCK = 0x454C444552  # "ELDER"


def reconcile(session: Session, retry_delay_seconds: float) -> list[str]:
    """One pass, in its caller's transaction; returns the ids of jobs that need a hint after the commit.

    On Postgres one process at a time does it; the others return at once.
    """
    if not settle(session, retry_delay_seconds):
        return []
    now = database_now(session)
    hints = repository.unhinted(session, now, HINT_AGAIN)
    for row in hints:
        row.hinted_at = now
    return [row.id for row in hints]


def settle(session: Session, retry_delay_seconds: float) -> bool:
    """The part of a pass that needs neither worker nor broker: end or queue again what was lost, forget what is over.

    False, and nothing done, while another process is at it.
    """
    if not _alone(session):
        return False
    now = database_now(session)
    for row in repository.expired_leases(session, now):
        with attempts.apart(session, row):
            attempts.lease_expired(session, row, retry_delay_seconds)
    for row in repository.past_queue_deadline(session, now):
        with attempts.apart(session, row):
            repository.move(row, Status.EXPIRED)
            row.finished_at = now
            repository.add_event(session, row, events.EXPIRED, now, {"max_queue_seconds": row.max_queue_seconds})
    workers.forget_silent(session)
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now - IDEMPOTENCY_LIFE))
    session.flush()
    return True


def _alone(session: Session) -> bool:
    if session.get_bind().dialect.name != "postgresql":
        return True  # an immediate transaction on SQLite excludes every other writer
    return bool(session.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK}).scalar_one())
