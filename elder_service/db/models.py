"""The tables. A job's row is the truth about it; everything else follows from it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from elder_core.spec import Stage
from elder_service.jobs.states import Status

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


DEFAULT_OWNER = "default"
"""Of a job whose caller did not say who it is."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC on every database; SQLite keeps it as naive UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: Json, list[dict[str, Any]]: Json}  # noqa: RUF012


def _one_of(column: str, values: type[Status | Stage]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


class JobRow(Base):
    """One job. `attempt` is the fencing token: every write of an attempt names it."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(_one_of("status", Status), name="jobs_status"),
        CheckConstraint(_one_of("stage", Stage), name="jobs_stage"),
        Index("jobs_claim", "status", "priority", "created_at"),
        Index("jobs_listing", "created_at", "id"),
        Index("jobs_by_owner", "owner", "status"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str | None] = mapped_column(String(16))
    method: Mapped[str] = mapped_column(String(64), index=True)
    spec: Mapped[dict[str, Any]]
    job_metadata: Mapped[dict[str, Any]] = mapped_column("metadata")
    owner: Mapped[str] = mapped_column(String(64), default=DEFAULT_OWNER, server_default=DEFAULT_OWNER)
    needs_device: Mapped[str | None] = mapped_column(String(8))
    needs_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    priority: Mapped[int] = mapped_column(Integer)  # higher goes first
    max_runtime_seconds: Mapped[int | None]
    max_queue_seconds: Mapped[int | None]

    created_at: Mapped[datetime]
    available_at: Mapped[datetime]  # not claimed before: back-off between attempts
    queue_deadline_at: Mapped[datetime | None]
    hinted_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]  # of the current attempt
    finished_at: Mapped[datetime | None]

    attempt: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    failures: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))  # attempts that count
    max_attempts: Mapped[int]
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None] = mapped_column(index=True)
    cancel_requested_at: Mapped[datetime | None]

    progress: Mapped[dict[str, Any] | None]
    stage_history: Mapped[list[dict[str, Any]]]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    last_event_seq: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))


class JobEventRow(Base):
    """What happened to a job, append-only; `seq` counts from 1 without gaps."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(40))
    at: Mapped[datetime]
    data: Mapped[dict[str, Any]]


class ArtifactRow(Base):
    """A file of a job that succeeded. `storage_key` holds the attempt that wrote it."""

    __tablename__ = "artifacts"
    __table_args__ = (Index("artifacts_by_name", "job_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(500))
    kind: Mapped[str] = mapped_column(String(16))
    storage_key: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class WorkerRow(Base):
    """A worker and what it has. It is there until `expires_at`, and says so again before."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    device: Mapped[str] = mapped_column(String(8))
    gpu: Mapped[str | None] = mapped_column(String(200))
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    started_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class IdempotencyRow(Base):
    """The job that an owner's Idempotency-Key created, and a hash of the body that came with it."""

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True, server_default=DEFAULT_OWNER)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_hash: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(index=True)
