"""Workers and jobs of the version before, on the database of this one; migrations up and down with live rows."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, MetaData, Table, inspect, select, update

from elder_service.db.models import JobRow
from elder_service.db.schema import downgrade, expected_head, migrate
from elder_service.ids import new_id
from elder_service.storage.base import attempt_prefix
from tests.faults import invariants
from tests.faults.cluster import MAX_ATTEMPTS, STEADY, Cluster
from tests.faults.script import FILES, Script, content

BEFORE = "0001"
SOME = 5


class Before:
    """The version before, as far as its statements go: they name the columns that it knew."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        known = MetaData()
        self.jobs, self.events, self.artifacts = (
            Table(name, known, autoload_with=engine) for name in ("jobs", "job_events", "artifacts")
        )

    def submit(self) -> str:
        now, job_id = datetime.now(UTC), new_id("job")
        row = {
            "id": job_id, "status": "queued", "method": "elder", "spec": Script().spec().model_dump(mode="json"),
            "metadata": {}, "priority": 0, "created_at": now, "available_at": now, "attempt": 0, "failures": 0,
            "max_attempts": MAX_ATTEMPTS, "stage_history": [], "last_event_seq": 0,
        }  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(self.jobs.insert().values(row))
            self._tell(connection, job_id, "job.created", now, {})
        return job_id

    def work(self, artifacts_dir: Path, stop: threading.Event) -> list[str]:
        """As its worker would: take one queued job after the other, and run it; the jobs that it ran."""
        ran = []
        while not stop.wait(0.02):
            if claimed := self.claim(timedelta(seconds=60)):
                ran.append(claimed[0])
                self._succeed(*claimed, artifacts_dir)
        return ran

    def claim(self, lease: timedelta) -> tuple[str, int] | None:
        """The oldest queued job, and the attempt that begins."""
        queued = (
            select(self.jobs.c.id, self.jobs.c.attempt)
            .where(self.jobs.c.status == "queued", self.jobs.c.available_at <= datetime.now(UTC))
            .order_by(self.jobs.c.created_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with self.engine.begin() as connection:
            row = connection.execute(queued).one_or_none()
            if row is None:
                return None
            now, attempt = datetime.now(UTC), row.attempt + 1
            running = {"status": "running", "attempt": attempt, "lease_owner": "old:1", "started_at": now}
            self._change(connection, row.id, **running, lease_expires_at=now + lease)
            self._tell(connection, row.id, "job.started", now, {"attempt": attempt})
            return row.id, attempt

    def _succeed(self, job_id: str, attempt: int, artifacts_dir: Path) -> None:
        with self.engine.begin() as connection:
            for name in FILES:
                self._leave_file(connection, job_id, name, f"{attempt_prefix(job_id, attempt)}/{name}", artifacts_dir)
            now = datetime.now(UTC)
            ended = {"status": "succeeded", "lease_owner": None, "lease_expires_at": None}
            self._change(connection, job_id, **ended, finished_at=now, result={})
            self._tell(connection, job_id, "job.succeeded", now, {})

    def _leave_file(self, connection: Connection, job_id: str, name: str, key: str, artifacts_dir: Path) -> None:
        data, path = content(job_id, name), artifacts_dir / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        row = {
            "id": new_id("art"), "job_id": job_id, "name": name, "kind": "model", "storage_key": key,
            "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "created_at": datetime.now(UTC),
        }  # fmt: skip
        connection.execute(self.artifacts.insert().values(row))

    def _change(self, connection: Connection, job_id: str, **values: object) -> None:
        connection.execute(update(self.jobs).where(self.jobs.c.id == job_id).values(**values))

    def _tell(self, connection: Connection, job_id: str, kind: str, at: datetime, data: dict[str, Any]) -> None:
        """An event, numbered in the transaction of what it tells and of the same time: a job that may be claimed from
        `available_at` on must not begin before it was created.
        """
        self._change(connection, job_id, last_event_seq=self.jobs.c.last_event_seq + 1)
        seq = connection.scalar(select(self.jobs.c.last_event_seq).where(self.jobs.c.id == job_id))
        row = {"job_id": job_id, "seq": seq, "type": kind, "at": at, "data": data}
        connection.execute(self.events.insert().values(row))


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
    """Both take jobs of both from one queue, each job once, until each has run some."""
    assert "owner" not in before.jobs.c
    either.worker(**STEADY)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(before.work, either.settings.artifacts_dir, stop)
        try:
            either.until(lambda: _ran_by_both(either, before), lambda ran: min(ran.values()) >= SOME)
        finally:
            stop.set()
    submitted = {*either.jobs()}
    assert invariants.check(either) == {"succeeded": len(submitted)}
    new = {job_id for job_id, _ in either.gates.executions()}
    assert {*old.result()} | new == submitted
    assert not {*old.result()} & new, "a job was run by both"


def _ran_by_both(cluster: Cluster, before: Before) -> dict[str, int]:
    """How many jobs the old worker, and the new one, have run; each version adds one where few are left."""
    new = {job_id for job_id, _ in cluster.gates.executions()}
    with cluster.sessions.begin() as session:
        status = {row.id: row.status for row in session.scalars(select(JobRow))}
    if list(status.values()).count("queued") < SOME:
        before.submit()
        cluster.submit(owner="anna")
    old = {job_id for job_id in status.keys() - new if status[job_id] == "succeeded"}
    return {"old": len(old), "new": len(new)}


def test_what_an_old_worker_left_is_taken_up(either: Cluster, before: Before) -> None:
    lost = before.submit()
    assert before.claim(-timedelta(seconds=1)) == (lost, 1)
    either.worker(**STEADY)
    assert (either.ended(lost).attempt, either.job(lost).owner) == (2, "default")
    assert invariants.check(either) == {"succeeded": 1}


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
