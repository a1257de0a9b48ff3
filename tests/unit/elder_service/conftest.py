"""A migrated database of each kind: what holds on Postgres must hold on SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from elder_core.spec import JobSpec, ModelRef
from elder_service.db.engine import SessionFactory, make_engine, make_sessions
from elder_service.db.schema import migrate
from elder_service.jobs import service
from elder_service.jobs.service import Submission


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'elder.db'}"
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
def sessions(database_url: str) -> Iterator[SessionFactory]:
    engine = make_engine(database_url)
    migrate(engine)
    yield make_sessions(engine)
    engine.dispose()


def submission(**overrides: object) -> Submission:
    fields: dict[str, object] = {
        "spec": JobSpec(model=ModelRef(id="builtin:manuals-16l"), ratio=0.25),
        "max_attempts": 3,
        **overrides,
    }
    return Submission(**fields)  # type: ignore[arg-type]


def submit(sessions: SessionFactory, **overrides: object) -> str:
    """Submit a job; its id."""
    with sessions.begin() as session:
        row, _ = service.submit(session, submission(**overrides))
        return row.id
