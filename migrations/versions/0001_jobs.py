"""Jobs, their events and artefacts, idempotency keys."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATUSES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled", "expired")
STAGES = (
    "resolving",
    "loading",
    "calibrating",
    "selecting",
    "regularizing",
    "pruning",
    "evaluating",
    "exporting",
)


def _json() -> sa.types.TypeEngine[Any]:
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def _time(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _job_reference() -> sa.Column[object]:
    return sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(16)),
        sa.Column("method", sa.String(64), nullable=False),
        sa.Column("spec", _json(), nullable=False),
        sa.Column("metadata", _json(), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("max_runtime_seconds", sa.Integer),
        sa.Column("max_queue_seconds", sa.Integer),
        _time("created_at", nullable=False),
        _time("available_at", nullable=False),
        _time("queue_deadline_at"),
        _time("hinted_at"),
        _time("started_at"),
        _time("finished_at"),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.String(200)),
        _time("lease_expires_at"),
        _time("cancel_requested_at"),
        sa.Column("progress", _json()),
        sa.Column("stage_history", _json(), nullable=False),
        sa.Column("result", _json()),
        sa.Column("error", _json()),
        sa.Column("last_event_seq", sa.Integer, nullable=False, server_default="0"),
        sa.CheckConstraint(sa.column("status").in_(STATUSES), name="jobs_status"),
        sa.CheckConstraint(sa.column("stage").in_(STAGES), name="jobs_stage"),
    )
    op.create_index("jobs_claim", "jobs", ["status", "priority", "created_at"])
    op.create_index("jobs_listing", "jobs", ["created_at", "id"])
    op.create_index("ix_jobs_method", "jobs", ["method"])
    op.create_index("ix_jobs_lease_expires_at", "jobs", ["lease_expires_at"])

    op.create_table(
        "job_events",
        _job_reference(),
        sa.Column("seq", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("type", sa.String(40), nullable=False),
        _time("at", nullable=False),
        sa.Column("data", _json(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "seq"),
    )

    op.create_table(
        "artifacts",
        sa.Column("id", sa.String(40), primary_key=True),
        _job_reference(),
        sa.Column("name", sa.String(500), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("storage_key", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        _time("created_at", nullable=False),
    )
    op.create_index("artifacts_by_name", "artifacts", ["job_id", "name"], unique=True)

    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_hash", sa.String(64), nullable=False),
        _job_reference(),
        _time("created_at", nullable=False),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    for table in ("idempotency_keys", "artifacts", "job_events", "jobs"):
        op.drop_table(table)
