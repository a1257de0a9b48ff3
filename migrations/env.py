"""Alembic's entry: run the migrations on the engine that elder_service.db.schema hands over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from sqlalchemy import Connection

from elder_service.db.engine import make_engine
from elder_service.db.models import Base
from elder_service.settings import Settings


def run() -> None:
    engine = context.config.attributes.get("engine") or make_engine(Settings().effective_database_url)
    with engine.connect() as connection, _without_cascades(connection), connection.begin():
        context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
        context.run_migrations()


@contextmanager
def _without_cascades(connection: Connection) -> Iterator[None]:
    """Alembic alters a table of SQLite by making it anew and dropping the old one, which would delete all that refers
    to its rows: a job's events and artefacts. SQLite takes this switch outside of a transaction only.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    driver = connection.connection
    driver.cursor().execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.cursor().execute("PRAGMA foreign_keys=ON")


run()
