"""Workers and jobs of the version before, on the database of this one; migrations up and down with live rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, Table, inspect, update

from elder_service.db.schema import downgrade, expected_head, migrate
from elder_service.ids import new_id
from tests.faults import invariants
from tests.faults.cluster import MAX_ATTEMPTS, STEADY, Cluster
from tests.faults.script import Script

BEFORE = "0001"


class Before:
    """The version before, as far as its statements go: they name the columns that it knew."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        known = MetaData()
        self.jobs, self.events = (Table(name, known, autoload_with=engine) for name in ("jobs", "job_events"))

    def submit(self) -> str:
        now, job_id = datetime.now(UTC), new_id("job")
        row = {
            "id": job_id, "status": "queued", "method": "elder", "spec": Script().spec().model_dump(mode="json"),
            "metadata": {}, "priority": 0, "created_at": now, "available_at": now, "attempt": 0, "failures": 0,
            "max_attempts": MAX_ATTEMPTS, "stage_history": [], "last_event_seq": 1,
        }  # fmt: skip
        self._insert(self.jobs, row)
        self._insert(self.events, {"job_id": job_id, "seq": 1, "type": "job.created", "at": now, "data": {}})
        return job_id

    def claim_and_die(self, job_id: str) -> None:
        """As its worker would, which then falls silent."""
        now = datetime.now(UTC)
        with self.engine.begin() as connection:
            connection.execute(
                update(self.jobs)
                .where(self.jobs.c.id == job_id, self.jobs.c.status == "queued")
                .values(
                    status="running",
                    attempt=1,
                    lease_owner="old:1",
                    started_at=now,
                    last_event_seq=2,
                    lease_expires_at=now - timedelta(seconds=1),
                )
            )
        self._insert(
            self.events, {"job_id": job_id, "seq": 2, "type": "job.started", "at": now, "data": {"attempt": 1}}
        )

    def _insert(self, table: Table, row: dict[str, Any]) -> None:
        with self.engine.begin() as connection:
            connection.execute(table.insert().values(row))


@pytest.fixture
def engine(either: Cluster) -> Engine:
    bound: Engine = either.sessions.kw["bind"]
    return bound


@pytest.fixture
def before(engine: Engine) -> Before:
    """Started before the migration, so it knows no column of this version."""
    downgrade(engine, BEFORE)
    old = Before(engine)
    migrate(engine)
    return old


def test_old_and_new_side_by_side(either: Cluster, before: Before) -> None:
    assert "owner" not in before.jobs.c
    either.worker(**STEADY)
    waiting, lost = before.submit(), before.submit()
    before.claim_and_die(lost)
    assert (either.ended(waiting).attempt, either.job(waiting).owner) == (1, "default")
    assert either.ended(lost).status == "succeeded"
    with either.sessions.begin() as session:  # the old one ran nothing
        assert session.get_one(type(either.job(lost)), lost).attempt in {1, 2}
    assert invariants.check(either) == {"succeeded": 2}


def test_down_and_up_again_with_live_rows(either: Cluster, engine: Engine) -> None:
    worker = either.worker(**STEADY)
    done, running, queued = either.submit(), either.submit(Script(endless_attempts=1)), None
    either.ended(done)
    either.until(lambda: either.job(running).stage, lambda stage: stage == "regularizing")
    queued = either.submit(owner="anna")
    worker.terminate()
    worker.wait(either.patience_seconds)
    downgrade(engine, BEFORE)
    assert {column["name"] for column in inspect(engine).get_columns("jobs")}.isdisjoint({"owner", "needs_device"})
    old = Before(engine)
    older = old.submit()
    migrate(engine)
    assert expected_head() != BEFORE
    either.worker(**STEADY)
    for job_id in (running, queued, older):
        assert either.ended(job_id).status == "succeeded"
    assert either.job(running).failures == 0
    assert invariants.check(either) == {"succeeded": 4}
