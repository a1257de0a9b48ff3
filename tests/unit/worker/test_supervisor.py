"""Claiming, with a child that cannot be started: what a job's process does is tested in tests/integration."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from elder_service.db.engine import SessionFactory
from elder_service.jobs import attempts, repository
from elder_service.jobs.hardware import Capacity, Device
from elder_service.jobs.states import Status
from elder_service.settings import Settings
from elder_service.storage.local import LocalStorage
from tests.unit.elder_service.conftest import submit
from worker import supervisor as module
from worker.child import Assignment
from worker.pulse import Pulse, pulse_of
from worker.supervisor import Supervisor

CAPACITY = Capacity(Device.CPU, 8 * 10**9)


@pytest.fixture
def pulse(settings: Settings) -> Pulse:
    settings.data_dir.mkdir(exist_ok=True)
    return pulse_of(settings)


@dataclass
class FakeForkServer:
    """Counts how often torch was loaded, which it is not."""

    fails: bool = False
    warmed_up: int = 0
    context: None = None

    def start(self) -> None:
        pass

    def warm_up(self) -> None:
        self.warmed_up += 1
        if self.fails:
            raise EOFError


@pytest.fixture
def fork_server() -> FakeForkServer:
    return FakeForkServer()


@pytest.fixture
def supervisor(
    settings: Settings,
    sessions: SessionFactory,
    pulse: Pulse,
    fork_server: FakeForkServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Supervisor:
    """One that is warm without having loaded anything, and whose every process fails to start."""

    def no_process(_context: object, assignment: Assignment) -> Any:
        assignment.scratch.mkdir(parents=True)
        raise ConnectionRefusedError("the fork server is gone")

    monkeypatch.setattr(module, "Child", no_process)
    made = Supervisor(settings, sessions, LocalStorage(settings.artifacts_dir), fork_server, pulse, CAPACITY)
    made.warm_up()
    return made


def test_nothing_is_claimed_before_torch_is_loaded(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, fork_server: FakeForkServer
) -> None:
    job_id = submit(sessions)
    cold = Supervisor(settings, sessions, LocalStorage(settings.artifacts_dir), fork_server, pulse, CAPACITY)
    assert cold.run_available() == 0
    with sessions.begin() as session:
        assert repository.get(session, job_id).status == Status.QUEUED


def test_a_worker_that_is_stopped_while_it_loads_torch_waits_for_nothing(supervisor: Supervisor) -> None:
    assert supervisor.wait_idle(0)


def test_a_worker_that_cannot_load_torch_claims_nothing_until_it_can(
    settings: Settings, sessions: SessionFactory, pulse: Pulse, supervisor: Supervisor, fork_server: FakeForkServer
) -> None:
    job_id = submit(sessions, max_attempts=1)
    fork_server.fails = True
    broken = Supervisor(settings, sessions, LocalStorage(settings.artifacts_dir), fork_server, pulse, CAPACITY)
    broken.warm_up()
    assert broken.run_available() == 0
    with sessions.begin() as session:
        assert repository.get(session, job_id).attempt == 0
    fork_server.fails = False
    assert broken.run_available() == 1


def test_a_worker_on_which_everything_fails_takes_a_rest(
    supervisor: Supervisor, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk is full, perhaps: other workers are to have the rest of the queue."""
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    ids = [submit(sessions, max_attempts=1) for _ in range(4)]
    assert supervisor.run_available() == 2
    assert supervisor.run_available() == 0
    with sessions.begin() as session:
        assert [repository.get(session, job_id).attempt for job_id in ids] == [1, 1, 0, 0]
    now += 5  # claim_seconds
    assert supervisor.run_available() == 1
    now += 5
    assert supervisor.run_available() == 0, "twice as long"
    now += 5
    assert supervisor.run_available() == 1


def test_after_an_attempt_that_failed_torch_is_loaded_before_the_next_claim(
    supervisor: Supervisor, fork_server: FakeForkServer, sessions: SessionFactory
) -> None:
    """The fork server may have died with it, and the lease of the next must not run while a new one loads torch."""
    for _ in range(2):
        submit(sessions, max_attempts=1)
    assert supervisor.run_available() == 2
    assert fork_server.warmed_up == 2  # at first, and after the first of the two; after the second it rests


def test_a_worker_that_is_stopped_while_it_loads_torch_claims_nothing(
    supervisor: Supervisor, fork_server: FakeForkServer, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (submit(sessions, max_attempts=1) for _ in range(2))
    monkeypatch.setattr(fork_server, "warm_up", supervisor.drain)
    assert supervisor.run_available() == 1  # after which torch is loaded anew
    with sessions.begin() as session:
        states = [repository.get(session, job_id).status for job_id in (first, second)]
        assert states == [Status.FAILED, Status.QUEUED]
        assert repository.get(session, second).attempt == 0


def test_a_worker_that_leaves_gives_back_a_claim_whose_answer_was_lost(
    supervisor: Supervisor, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(sessions, max_attempts=1)

    def committed_unheard() -> None:
        with sessions.begin() as session:
            assert attempts.claim(session, supervisor.owner, 60)
        raise OperationalError("COMMIT", {}, Exception("the connection broke"))

    monkeypatch.setattr(supervisor, "_claim", committed_unheard)
    assert supervisor.run_available() == 0
    supervisor.drain()
    supervisor.leave()
    with sessions.begin() as session:
        row = repository.get(session, job_id)
        assert (row.status, row.failures) == (Status.QUEUED, 0)


def test_a_hint_that_comes_just_after_the_last_look_is_not_lost(
    supervisor: Supervisor, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    look = supervisor._run_next

    def look_and_be_told() -> bool:
        found = look()
        looks.append(len(looks))
        if len(looks) == 1:
            submit(sessions, max_attempts=1)
            assert supervisor.run_available() == 0  # a hint, in another thread: the slot is taken
        return found

    monkeypatch.setattr(supervisor, "_run_next", look_and_be_told)
    assert supervisor.run_available() == 1
    assert len(looks) == 3


def test_a_failed_start_is_written_and_leaves_no_scratch(
    supervisor: Supervisor, settings: Settings, sessions: SessionFactory
) -> None:
    job_id = submit(sessions, max_attempts=1)
    assert supervisor.run_available() == 1
    with sessions.begin() as session:
        row = repository.get(session, job_id)
    assert row.status == Status.FAILED
    assert row.error is not None
    assert row.error["code"] == "start_failed"
    assert list(settings.scratch_dir.rglob("*")) == [settings.scratch_dir / "jobs"]


@pytest.mark.parametrize("error", [OperationalError, ProgrammingError])
def test_a_look_that_fails_is_no_sign_of_life(
    supervisor: Supervisor, pulse: Pulse, monkeypatch: pytest.MonkeyPatch, error: type[OperationalError]
) -> None:
    def fails(*_: object) -> None:
        raise error("SELECT", {}, Exception("away"))

    with monkeypatch.context() as patched:
        patched.setattr(attempts, "claim", fails)
        try:
            supervisor.run_available()
        except ProgrammingError:
            assert error is ProgrammingError  # the timer logs it and goes on
        assert not pulse.path.exists()
    supervisor.run_available()
    assert pulse.path.exists()
