"""The workers that are there: each says so at every heartbeat, and is forgotten when it falls silent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from elder_service.db.engine import database_now
from elder_service.db.models import WorkerRow
from elder_service.jobs.hardware import Capacity, Device


def register(session: Session, owner: str, capacity: Capacity, life_seconds: float) -> None:
    """Say that the worker `owner` is there, for so long."""
    now = database_now(session)
    row = session.get(WorkerRow, owner)
    if row is None:
        row = WorkerRow(id=owner, started_at=now)
        session.add(row)
    row.device, row.gpu, row.memory_bytes = capacity.device, capacity.gpu, capacity.memory_bytes
    row.expires_at = now + timedelta(seconds=life_seconds)


def leave(session: Session, owner: str) -> None:
    session.execute(delete(WorkerRow).where(WorkerRow.id == owner))


def forget_silent(session: Session) -> None:
    session.execute(delete(WorkerRow).where(WorkerRow.expires_at < database_now(session)))


def present(session: Session) -> Sequence[WorkerRow]:
    """Those that are there now, from the oldest on."""
    now = database_now(session)
    return session.scalars(
        select(WorkerRow).where(WorkerRow.expires_at > now).order_by(WorkerRow.started_at, WorkerRow.id)
    ).all()


def capacity_of(row: WorkerRow) -> Capacity:
    return Capacity(Device(row.device), row.memory_bytes, row.gpu)
