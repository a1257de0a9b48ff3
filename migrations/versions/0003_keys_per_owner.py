"""An Idempotency-Key is its owner's own: two owners who use the same one make two jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLE, PRIMARY_KEY = "idempotency_keys", "idempotency_keys_pkey"
_NAMES = {"pk": PRIMARY_KEY}  # SQLite gave it none


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("owner", sa.String(64), nullable=False, server_default="default"))
    op.execute(f"UPDATE {TABLE} SET owner = (SELECT owner FROM jobs WHERE jobs.id = {TABLE}.job_id)")
    with op.batch_alter_table(TABLE, naming_convention=_NAMES) as table:
        table.drop_constraint(PRIMARY_KEY, type_="primary")
        table.create_primary_key(PRIMARY_KEY, ["owner", "key"])


def downgrade() -> None:
    """Of several owners' uses of one key the first stays, the only one that the version before would have taken."""
    op.execute(
        f"""
        DELETE FROM {TABLE} WHERE EXISTS (
            SELECT 1 FROM {TABLE} AS first WHERE first.key = {TABLE}.key
            AND (first.created_at, first.owner) < ({TABLE}.created_at, {TABLE}.owner)
        )
        """
    )
    with op.batch_alter_table(TABLE, naming_convention=_NAMES) as table:
        table.drop_constraint(PRIMARY_KEY, type_="primary")
        table.create_primary_key(PRIMARY_KEY, ["key"])
    with op.batch_alter_table(TABLE) as table:
        table.drop_column("owner")
