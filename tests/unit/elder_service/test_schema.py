"""Migrations and models agree, and a server refuses another schema."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from elder_service.db.engine import make_engine
from elder_service.db.models import Base
from elder_service.db.schema import check_head, downgrade, migrate
from elder_service.errors import SchemaMismatch


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
