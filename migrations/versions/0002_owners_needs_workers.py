"""Who owns a job and what hardware it needs; the workers that are there and what they have.

Every new column has a default or may be null, so that workers of the version before go on while this one starts.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("owner", sa.String(64), nullable=False, server_default="default"))
    op.add_column("jobs", sa.Column("needs_device", sa.String(8)))
    op.add_column("jobs", sa.Column("needs_memory_bytes", sa.BigInteger))
    op.create_index("jobs_by_owner", "jobs", ["owner", "status"])
    op.create_table(
        "workers",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("device", sa.String(8), nullable=False),
        sa.Column("gpu", sa.String(200)),
        sa.Column("memory_bytes", sa.BigInteger),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("workers")
    op.drop_index("jobs_by_owner", "jobs")
    for column in ("needs_memory_bytes", "needs_device", "owner"):
        op.drop_column("jobs", column)
