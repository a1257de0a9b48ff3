"""One attempt, with a process that does what the test wants, on both databases."""

from __future__ import annotations

import multiprocessing
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from elder_core.errors import OutOfMemory
from elder_core.spec import Progress, Stage
from elder_service.db.engine import SessionFactory
from elder_service.db.models import JobRow
from elder_service.errors import RunnerDied
from elder_service.jobs import attempts, repository, service
from elder_service.jobs.attempts import Claim, LeaseLost, Outcome
from elder_service.jobs.states import Status
from elder_service.settings import Settings
from tests.unit.elder_service.conftest import submit
from worker import attempt as module
from worker.attempt import POLL_SECONDS, Attempt
from worker.child import Failure, Message, Stopped
from worker.lease import LEASE_MARGIN, LeaseWatch
from worker.pulse import Pulse, pulse_of


@dataclass
class FakeChild:
    """A process that exists only as its end of a pipe; `theirs` is what it would write to."""

    connection: Connection
    theirs: Connection
    outcome: Outcome | None = None
    stopped: list[float] = field(default_factory=list)
    kept: bool = False
    killed: bool = False

    def heard(self, seconds: float) -> Message | None:
        return self.connection.recv() if self.connection.poll(seconds) else None

    def stop(self, grace_seconds: float, meanwhile: Callable[[], None], *, keep: bool = False) -> Outcome | None:
        self.stopped.append(grace_seconds)
        meanwhile()
        self.kept = keep
        return self.outcome

    def kill(self) -> None:
        self.killed = True

    def end(self) -> None:
        self.killed = True
        self.theirs.close()

    def death(self) -> tuple[RunnerDied, dict[str, object]]:
        return RunnerDied("The job's process was ended by SIGKILL."), {"signal": "SIGKILL", "log_tail": ["last words"]}


@pytest.fixture
def child() -> Iterator[FakeChild]:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours, theirs:
        yield FakeChild(ours, theirs)


@pytest.fixture
def pulse(settings: Settings) -> Pulse:
    settings.data_dir.mkdir(exist_ok=True)
    return pulse_of(settings)


def claimed(sessions: SessionFactory, **overrides: object) -> Claim:
    submit(sessions, **overrides)
    with sessions.begin() as session:
        held = attempts.claim(session, "worker-1", 60)
    assert held is not None
    return held


def attempt(
    settings: Settings, sessions: SessionFactory, held: Claim, pulse: Pulse, draining: threading.Event | None = None
) -> Attempt:
    return Attempt(settings, sessions, held, draining or threading.Event(), pulse, time.monotonic())


def drained(child: FakeChild, draining: threading.Event) -> FakeChild:
    """`child`, started just before the worker is told to stop."""
    draining.set()
    return child


def job(sessions: SessionFactory, held: Claim) -> JobRow:
    with sessions.begin() as session:
        return repository.get(session, held.job_id)


def test_success_is_written(settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild) -> None:
    held = claimed(sessions)
    child.theirs.send(Progress(stage=Stage.LOADING, step=1, total=2, metrics={"loss": 1.0}))
    child.theirs.send(Outcome(result={"removed_layers": [1]}))
    assert attempt(settings, sessions, held, pulse).run(lambda: child)
    row = job(sessions, held)
    assert (row.status, row.result) == (Status.SUCCEEDED, {"removed_layers": [1]})
    assert child.killed
    assert pulse.path.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("can't start new thread")])
def test_a_process_that_cannot_be_started_is_told_of_and_tried_again(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, error: Exception
) -> None:
    def start() -> Any:
        raise error

    held = claimed(sessions, max_attempts=2)
    assert not attempt(settings, sessions, held, pulse).run(start)
    assert job(sessions, held).status == Status.QUEUED
    with sessions.begin() as session:
        second = attempts.claim(session, "worker-1", 60)
    assert second is not None
    assert not attempt(settings, sessions, second, pulse).run(start)
    row = job(sessions, held)
    assert row.status == Status.FAILED
    assert row.error is not None
    assert row.error["code"] == "start_failed"
    assert str(error) in row.error["message"]


def test_a_message_that_breaks_off_is_a_death(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild
) -> None:
    held = claimed(sessions, max_attempts=1)
    os.write(child.theirs.fileno(), struct.pack("!i", 1000) + b"only the beginning")
    child.theirs.close()
    assert not attempt(settings, sessions, held, pulse).run(lambda: child)
    error = job(sessions, held).error
    assert error is not None
    assert (error["code"], error["details"]["signal"]) == ("runner_died", "SIGKILL")


def test_a_fault_of_the_worker_ends_the_attempt_at_once(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild
) -> None:
    held = claimed(sessions)
    child.theirs.send_bytes(b"no pickle")
    assert not attempt(settings, sessions, held, pulse).run(lambda: child)
    row = job(sessions, held)
    assert row.status == Status.FAILED
    assert row.error is not None
    assert row.error["code"] == "internal_error"
    assert "UnpicklingError" in row.error["message"]
    assert child.killed


def test_a_result_that_is_no_number_fails_the_job_on_both_databases(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild
) -> None:
    held = claimed(sessions)
    child.theirs.send(Outcome(result={"layers_after": 3, "perplexity_after": float("nan")}))
    assert not attempt(settings, sessions, held, pulse).run(lambda: child)
    row = job(sessions, held)
    assert row.status == Status.FAILED
    assert row.error is not None
    assert (row.error["code"], row.error["retryable"]) == ("result_not_finite", False)
    assert "perplexity_after is nan" in row.error["message"]
    assert "layers_after" not in row.error["message"]


def test_a_result_that_the_database_refuses_fails_the_job(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild
) -> None:
    """Neither keeps NaN in JSON, however often it is asked."""
    held = claimed(sessions)
    child.theirs.send(Outcome(result={"nested": [float("nan")]}))
    assert not attempt(settings, sessions, held, pulse).run(lambda: child)
    row = job(sessions, held)
    assert row.status == Status.FAILED
    assert row.error is not None
    assert row.error["code"] == "internal_error"
    assert "JSON" in row.error["message"]
    assert "UPDATE" not in row.error["message"]


def test_a_process_that_heard_the_stop_of_the_whole_service_first_is_drained(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild
) -> None:
    held = claimed(sessions, max_attempts=1)
    draining = threading.Event()
    child.theirs.send(Stopped())
    threading.Timer(0.05, draining.set).start()
    assert not attempt(settings, sessions, held, pulse, draining).run(lambda: child)
    row = job(sessions, held)
    assert (row.status, row.failures) == (Status.QUEUED, 0)


def test_a_process_that_somebody_else_stopped_is_tried_again(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAIN_NOTICE_SECONDS", 0.01)
    held = claimed(sessions)
    child.theirs.send(Stopped())
    assert not attempt(settings, sessions, held, pulse).run(lambda: child)
    row = job(sessions, held)
    assert (row.status, row.failures) == (Status.QUEUED, 1)


def test_what_a_process_says_need_not_be_fit_for_the_database(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild
) -> None:
    held = claimed(sessions, max_attempts=1)
    child.theirs.send(Progress(stage=Stage.SELECTING, step=1, total=2, metrics={"loss": float("nan"), "rate": 0.5}))
    child.theirs.send(Failure(OutOfMemory("file \udc80 holds \0.")))
    assert not attempt(settings, sessions, held, pulse).run(lambda: child)
    row = job(sessions, held)
    assert row.error is not None
    assert row.error["message"] == "file ? holds \ufffd."


def test_a_metric_that_is_not_finite_is_left_out(sessions: SessionFactory) -> None:
    held = claimed(sessions)
    metrics = {"loss": float("nan"), "norm": float("inf"), "rate": 0.5}
    with sessions.begin() as session:
        progress = Progress(stage=Stage.SELECTING, step=1, total=2, metrics=metrics)
        attempts.record_progress(session, held, progress, event=True)
    progress_of_row = job(sessions, held).progress
    assert progress_of_row is not None
    assert progress_of_row["metrics"] == {"rate": 0.5}


def test_a_database_that_was_away_is_tried_again(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = claimed(sessions)
    succeed, calls = attempts.succeed, []

    def fails_once(session: Session, held: Claim, outcome: Outcome) -> None:
        calls.append(held)
        if len(calls) == 1:
            raise OperationalError("UPDATE jobs", {}, Exception("server closed the connection"))
        succeed(session, held, outcome)

    monkeypatch.setattr(attempts, "succeed", fails_once)
    child.theirs.send(Outcome(result={}))
    assert attempt(settings, sessions, held, pulse).run(lambda: child)
    assert len(calls) == 2
    assert job(sessions, held).status == Status.SUCCEEDED


def test_the_process_is_gone_before_the_lease_is(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("UPDATE jobs", {}, Exception("no route to host"))

    monkeypatch.setattr(attempts, "renew", away)
    held = claimed(sessions)
    short = settings.model_copy(update={"lease_seconds": 0.5, "heartbeat_seconds": 0.1})
    with pytest.raises(LeaseLost):
        attempt(short, sessions, held, pulse).run(lambda: child)
    assert child.killed
    assert job(sessions, held).status == Status.RUNNING


def test_the_process_is_gone_before_the_lease_is_though_the_database_hangs(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def hangs(*_: object) -> None:
        assert ended.wait(30), "nobody ended the process while the call hung"
        raise OperationalError("UPDATE jobs", {}, Exception("no answer"))

    monkeypatch.setattr(attempts, "renew", hangs)
    monkeypatch.setattr(child, "end", ended.set)
    held = claimed(sessions)
    short = settings.model_copy(update={"lease_seconds": 0.5, "heartbeat_seconds": 0.1})
    with pytest.raises(LeaseLost):
        attempt(short, sessions, held, pulse).run(lambda: child)
    assert job(sessions, held).status == Status.RUNNING


def test_a_lease_counts_from_before_the_renewal_was_sent() -> None:
    now = time.monotonic()
    watch = LeaseWatch(10, claimed_at=now - 10)
    assert watch.over()
    watch.extend(now - 7)
    assert not watch.over()
    watch.extend(now - 8.5)  # 80 % of it is used
    assert watch.over()


def test_cancel_stops_the_process_with_the_grace_that_is_set(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild
) -> None:
    held = claimed(sessions)
    with sessions.begin() as session:
        service.cancel(session, held.job_id)
    quick = settings.model_copy(update={"cancel_poll_seconds": 0.05})
    assert not attempt(quick, sessions, held, pulse).run(lambda: child)
    assert child.stopped == [settings.cancel_grace_seconds]
    assert not child.kept
    assert job(sessions, held).status == Status.CANCELLED


def test_drain_gives_the_job_back(settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild) -> None:
    held = claimed(sessions)
    draining = threading.Event()
    assert not attempt(settings, sessions, held, pulse, draining).run(lambda: drained(child, draining))
    row = job(sessions, held)
    assert (row.status, row.failures) == (Status.QUEUED, 0)
    assert child.kept


def test_a_claim_whose_worker_is_told_to_stop_meanwhile_starts_nothing(
    settings: Settings, sessions: SessionFactory, pulse: Pulse
) -> None:
    held = claimed(sessions, max_attempts=1)
    draining = threading.Event()
    draining.set()
    assert not attempt(settings, sessions, held, pulse, draining).run(lambda: pytest.fail("started"))
    row = job(sessions, held)
    assert (row.status, row.failures) == (Status.QUEUED, 0)


def test_a_renewal_that_fails_is_tried_again_before_the_next_heartbeat(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away at the moment of the one heartbeat that the lease leaves time for."""
    quick = settings.model_copy(update={"lease_seconds": 5.0, "heartbeat_seconds": 2.4})
    held = claimed(sessions)
    renew, tries = attempts.renew, []

    def away_at_first(*given: Any) -> None:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise OperationalError("UPDATE", {}, Exception("away"))
        renew(*given)
        child.theirs.send(Outcome(result={}))

    monkeypatch.setattr(attempts, "renew", away_at_first)
    assert attempt(quick, sessions, held, pulse).run(lambda: child)
    assert len(tries) == 2
    assert tries[1] - tries[0] < quick.heartbeat_seconds


@pytest.mark.parametrize("why", ["drain", "time-out"])
def test_a_run_that_was_over_when_it_was_told_to_stop_has_succeeded(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, child: FakeChild, why: str
) -> None:
    held = claimed(sessions, max_runtime_seconds=0 if why == "time-out" else None)
    draining = threading.Event()
    child.outcome = Outcome(result={"removed_layers": [1]})
    start = (lambda: drained(child, draining)) if why == "drain" else (lambda: child)
    assert attempt(settings, sessions, held, pulse, draining).run(start)
    row = job(sessions, held)
    assert (row.status, row.result) == (Status.SUCCEEDED, {"removed_layers": [1]})
    assert child.stopped


def test_a_cancelled_job_is_over_within_three_seconds() -> None:
    """With the settings as they come: noticed at the latest after a poll, killed at the latest after the grace."""
    defaults = {name: Settings.model_fields[name].default for name in ("cancel_poll_seconds", "cancel_grace_seconds")}
    assert sum(defaults.values()) + 2 * POLL_SECONDS < 3


def test_a_call_to_the_database_ends_before_the_lease_that_it_renews() -> None:
    from elder_service.db import engine

    kept_back = Settings.model_fields["lease_seconds"].default * LEASE_MARGIN
    assert kept_back > engine.SILENCE_SECONDS + engine.CONNECT_SECONDS + engine.STATEMENT_SECONDS
    assert kept_back > engine.BUSY_SECONDS
