"""Whatever happens to jobs, in any order: only the table's transitions, only by the attempt that holds the job."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import select

from elder_core.errors import NonFiniteLoss
from elder_core.spec import Progress, Stage
from elder_service.db.engine import database_now, make_engine, make_sessions
from elder_service.db.models import JobEventRow, JobRow
from elder_service.db.schema import migrate
from elder_service.errors import RunnerDied
from elder_service.jobs import attempts, events, reconcile, repository, service
from elder_service.jobs.attempts import Claim, LeaseLost, Outcome
from elder_service.jobs.service import PRIORITIES
from elder_service.jobs.states import ACTIVE, TRANSITIONS, Status
from tests.faults import records
from tests.unit.elder_service.conftest import submission


@dataclass
class Expected:
    """What the model knows of a job; `attempt` is the one that may write."""

    status: Status
    priority: int
    max_attempts: int
    attempt: int = 0
    failures: int = 0
    order: int = 0


@cache
def empty_database() -> bytes:
    """Its file, migrated once for all runs."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "x.db")
        engine = make_engine(f"sqlite:///{database}")
        migrate(engine)
        engine.dispose()
        return database.read_bytes()


class Jobs(RuleBasedStateMachine):
    """The model beside the database."""

    jobs = Bundle("jobs")
    claims = Bundle("claims")

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="elder-machine-"))
        database = self.folder / "x.db"
        database.write_bytes(empty_database())
        self.engine = make_engine(f"sqlite:///{database}")
        self.sessions = make_sessions(self.engine)
        self.known: dict[str, Expected] = {}

    def teardown(self) -> None:
        self.engine.dispose()
        shutil.rmtree(self.folder)

    # What callers do -------------------------------------------------------------------------------------------------

    @rule(target=jobs, priority=st.sampled_from(sorted(PRIORITIES)), limit=st.integers(1, 3))
    def submit(self, priority: str, limit: int) -> str:
        with self.sessions.begin() as session:
            row, _ = service.submit(session, submission(priority=priority, max_attempts=limit, max_queue_seconds=3600))
        self.known[row.id] = Expected(Status.QUEUED, PRIORITIES[priority], limit, order=len(self.known))
        return row.id

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        with self.sessions.begin() as session:
            service.cancel(session, job_id)
        one = self.known[job_id]
        one.status = {Status.QUEUED: Status.CANCELLED, Status.RUNNING: Status.CANCELLING}.get(one.status, one.status)

    # What workers do -------------------------------------------------------------------------------------------------

    @rule(target=claims)
    def claim(self) -> Claim | None:
        waiting = [(-one.priority, one.order, key) for key, one in self.known.items() if one.status == Status.QUEUED]
        with self.sessions.begin() as session:
            held = attempts.claim(session, "worker", 60)
        assert (held.job_id if held else None) == (min(waiting)[2] if waiting else None)
        if held:
            one = self.known[held.job_id]
            one.status, one.attempt = Status.RUNNING, one.attempt + 1
            assert held.attempt == one.attempt
        return held

    def write(self, held: Claim | None, function: Any, *arguments: Any, **named: Any) -> Expected | None:
        """The job if the write was taken; it must be, exactly if this attempt holds the job."""
        if held is None:
            return None
        one = self.known[held.job_id]
        holds = one.attempt == held.attempt and one.status in ACTIVE
        try:
            with self.sessions.begin() as session:
                function(session, held, *arguments, **named)
        except LeaseLost:
            assert not holds
            return None
        assert holds
        return one

    @rule(held=claims, stage=st.sampled_from(Stage))
    def progress(self, held: Claim | None, stage: Stage) -> None:
        self.write(held, attempts.record_progress, Progress(stage=stage, step=0, total=1), event=True)

    @rule(held=claims)
    def renew(self, held: Claim | None) -> None:
        self.write(held, attempts.renew, 60)

    @rule(held=claims)
    def succeed(self, held: Claim | None) -> None:
        if one := self.write(held, attempts.succeed, Outcome({})):
            one.status = Status.SUCCEEDED

    @rule(held=claims)
    def give_back(self, held: Claim | None) -> None:
        if one := self.write(held, attempts.give_back):
            one.status = Status.CANCELLED if one.status == Status.CANCELLING else Status.QUEUED

    @rule(held=claims, may_pass=st.booleans())
    def fail(self, held: Claim | None, may_pass: bool) -> None:
        error = RunnerDied("x") if may_pass else NonFiniteLoss("x")
        if one := self.write(held, attempts.fail, error, 0):
            self.failed(one, may_pass=may_pass)

    def failed(self, one: Expected, *, may_pass: bool) -> None:
        if one.status == Status.CANCELLING:
            one.status = Status.CANCELLED
            return
        one.failures += 1
        one.status = Status.QUEUED if may_pass and one.failures < one.max_attempts else Status.FAILED

    @rule(held=claims)
    def cancelled(self, held: Claim | None) -> None:
        one = self.known[held.job_id] if held else None
        if held and one and one.status == Status.RUNNING and one.attempt == held.attempt:
            return  # a worker says so only of a job that it was asked to cancel
        if done := self.write(held, attempts.cancelled):
            done.status = Status.CANCELLED

    # What time does --------------------------------------------------------------------------------------------------

    @rule(job_id=jobs)
    def lease_runs_out(self, job_id: str) -> None:
        one = self.known[job_id]
        with self.sessions.begin() as session:
            row = repository.get(session, job_id)
            if row.lease_expires_at:
                row.lease_expires_at = database_now(session) - timedelta(seconds=1)
        self.reconcile()
        if one.status in ACTIVE:
            self.failed(one, may_pass=True)

    @rule(job_id=jobs)
    def queue_deadline_passes(self, job_id: str) -> None:
        one = self.known[job_id]
        with self.sessions.begin() as session:
            row = repository.get(session, job_id)
            if row.queue_deadline_at:
                row.queue_deadline_at = row.created_at
        self.reconcile()
        if one.status == Status.QUEUED and one.attempt == 0:
            one.status = Status.EXPIRED

    @rule()
    def reconcile(self) -> None:
        with self.sessions.begin() as session:
            reconcile.reconcile(session, 0)

    # What always holds -----------------------------------------------------------------------------------------------

    @invariant()
    def rows_are_as_expected(self) -> None:
        with self.sessions.begin() as session:
            for row in session.scalars(select(JobRow)):
                one = self.known[row.id]
                assert (row.status, row.attempt, row.failures) == (one.status, one.attempt, one.failures)
                assert (row.lease_owner is not None) == (one.status in ACTIVE)
                assert (row.finished_at is not None) == one.status.ended

    @invariant()
    def logs_tell_only_allowed_transitions(self) -> None:
        with self.sessions.begin() as session:
            columns = select(JobEventRow.job_id, JobEventRow.seq, JobEventRow.type)
            rows = session.execute(columns.order_by(JobEventRow.job_id, JobEventRow.seq)).all()
        for job_id, one in self.known.items():
            log = [(seq, kind) for found, seq, kind in rows if found == job_id]
            assert [seq for seq, _ in log] == list(range(1, len(log) + 1))
            states = [STATE_AFTER[kind] for _, kind in log if kind in STATE_AFTER]
            assert states[0] == Status.QUEUED
            assert all(after in TRANSITIONS[before] for before, after in pairwise(states))
            assert states[-1] == one.status


STATE_AFTER = {
    events.CREATED: Status.QUEUED,
    events.STARTED: Status.RUNNING,
    events.REQUEUED: Status.QUEUED,
    events.CANCELLING: Status.CANCELLING,
    events.SUCCEEDED: Status.SUCCEEDED,
    events.FAILED: Status.FAILED,
    events.CANCELLED: Status.CANCELLED,
    events.EXPIRED: Status.EXPIRED,
}

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
Jobs.TestCase.settings = settings(max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=SLOW)


class TestJobs(Jobs.TestCase):  # type: ignore[name-defined, misc]
    pass


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_whatever_callers_workers_and_time_do() -> None:
    """In random order, 60 steps in each of 300 runs: only the table's transitions, only by the attempt that holds."""
    from hypothesis.stateful import run_state_machine_as_test

    accepted: list[str] = []
    lost: list[str] = []

    class Counted(Jobs):
        def teardown(self) -> None:
            with self.sessions.begin() as session:
                there = set(session.scalars(select(JobRow.id)))
            accepted.extend(self.known)
            lost.extend(self.known.keys() - there)
            super().teardown()

    many = settings(max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=SLOW)
    run_state_machine_as_test(Counted, settings=many)
    records.note(accepted=len(accepted), lost=len(lost))
