"""Migrations and models agree, and a server refuses another schema."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, delete, inspect, text, update

from elder_service.db import schema
from elder_service.db.engine import make_engine, make_sessions
from elder_service.db.models import Base, IdempotencyRow, JobRow
from elder_service.db.schema import check_head, downgrade, expected_head, migrate
from elder_service.errors import SchemaMismatch
from elder_service.jobs import repository
from tests.unit.elder_service.conftest import submit


def test_migrations_make_what_the_models_say(database_url: str) -> None:
    engine = make_engine(database_url)
    migrate(engine)
    check_head(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    downgrade(engine, "base")
    assert set(inspect(engine).get_table_names()) <= {"alembic_version"}
    migrate(engine)
    engine.dispose()


def test_another_head_is_refused_with_the_way_out(database_url: str) -> None:
    engine = make_engine(database_url)
    with pytest.raises(SchemaMismatch, match=r"migration none.*elder-server migrate"):
        check_head(engine)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="9999"):
        check_head(engine)
    engine.dispose()


def keys(engine: Engine) -> list[tuple[str, str]]:
    """Key and job of every idempotency record, oldest first."""
    with engine.connect() as connection:
        return [
            (row.key, row.job_id)
            for row in connection.execute(text("SELECT key, job_id FROM idempotency_keys ORDER BY created_at, job_id"))
        ]


def test_keys_become_their_owners_own_and_back(database_url: str) -> None:
    engine = make_engine(database_url)
    migrate(engine)
    sessions = make_sessions(engine)
    first = submit(sessions, idempotency_key="k", owner="anna")
    downgrade(engine, "0002")
    migrate(engine)
    assert submit(sessions, idempotency_key="k", owner="anna") == first
    others = {owner: submit(sessions, idempotency_key="k", owner=owner) for owner in ("ben", "default")}
    alone = submit(sessions, idempotency_key="only", owner="ben")
    assert len({first, alone, *others.values()}) == 4
    with engine.begin() as connection:  # in the same moment, as a busy minute may have it
        connection.execute(
            update(IdempotencyRow).where(IdempotencyRow.owner != "anna").values(created_at=datetime.now(UTC))
        )
    downgrade(engine, "0002")
    assert keys(engine) == [("k", first), ("only", alone)]
    assert inspect(engine).get_pk_constraint("idempotency_keys")["constrained_columns"] == ["key"]
    migrate(engine)
    assert inspect(engine).get_pk_constraint("idempotency_keys")["constrained_columns"] == ["owner", "key"]
    assert submit(sessions, idempotency_key="k", owner="anna") == first
    with sessions.begin() as session:  # what refers to a job still goes with it
        session.execute(delete(JobRow))
    assert keys(engine) == []
    engine.dispose()


NEXT = """
from alembic import op
revision, down_revision, branch_labels, depends_on = "next", {head!r}, None, None
def upgrade():
    with op.batch_alter_table("jobs", recreate="always"):
        pass
"""


def test_a_table_that_is_made_anew_keeps_what_refers_to_its_rows(tmp_path: Path) -> None:
    """As Alembic alters a table of SQLite: dropping the old one deletes nothing else."""
    engine = make_engine(f"sqlite:///{tmp_path / 'elder.db'}")
    migrate(engine)
    sessions = make_sessions(engine)
    job_id = submit(sessions)
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "next.py").write_text(NEXT.format(head=expected_head()))
    config = schema._config(engine)
    own = Path(str(config.get_main_option("script_location"))) / "versions"
    config.set_main_option("version_locations", os.pathsep.join(map(str, (own, tmp_path / "versions"))))
    command.upgrade(config, "head")
    with sessions.begin() as session:
        assert len(repository.events_after(session, job_id, 0)) == 1
        session.execute(delete(JobRow))  # and cascades are on again
        assert repository.events_after(session, job_id, 0) == []
    engine.dispose()
