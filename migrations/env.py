"""Alembic's entry: run the migrations on the engine that elder_service.db.schema hands over."""

from __future__ import annotations

from alembic import context

from elder_service.db.engine import make_engine
from elder_service.db.models import Base
from elder_service.settings import Settings


def run() -> None:
    engine = context.config.attributes.get("engine") or make_engine(Settings().effective_database_url)
    with engine.begin() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
        context.run_migrations()


run()
