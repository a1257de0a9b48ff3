"""A fault in every function that touches the database, and in every method of the storage, one at a time in turn.

Worker and API run here in the test's own process, so that the fault can be put into any function; what a job's process
does is scripted, everything else is real.
"""

from __future__ import annotations

import inspect
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from api.main import create_app
from elder_core.errors import ElderError, OutOfMemory
from elder_core.spec import Progress, Stage
from elder_service import queue
from elder_service.db.engine import SessionFactory
from elder_service.db.models import JobRow
from elder_service.errors import RunnerDied, StorageFailed
from elder_service.jobs import attempts, reconcile, repository, service, workers
from elder_service.jobs.attempts import Claim, Outcome
from elder_service.jobs.hardware import Capacity, Device
from elder_service.jobs.states import Status
from elder_service.queue import make_celery
from elder_service.settings import Settings
from elder_service.storage.base import attempt_prefix
from elder_service.storage.local import LocalStorage
from elder_service.storage.publish import publish
from tests.faults.invariants import assert_well_ended, note
from tests.faults.script import FILES, content
from tests.unit.api.calls import JOB, RESULT
from tests.unit.elder_service.conftest import database_url, sessions, submit
from worker import supervisor as module
from worker.child import Assignment, Failure
from worker.maintenance import Maintenance
from worker.pulse import pulse_of
from worker.supervisor import Supervisor

__all__ = ["database_url", "sessions"]

ROUNDS = 400
LONG_SECONDS = 0.5  # more than one of a worker's looks, each of which may renew the lease
SHORT = {"claim", "succeed", "put"}
STORAGE = ("put", "path", "read", "delete_prefix", "list_prefixes")
Target = tuple[Any, str]


def functions_of(target: ModuleType) -> Iterator[Target]:
    """Its public functions that take a session."""
    for name, function in inspect.getmembers(target, inspect.isfunction):
        own = function.__module__ == target.__name__ and not name.startswith("_")
        if own and "session" in inspect.signature(function).parameters:
            yield target, name


TARGETS: list[Target] = [
    *(target for one in (repository, attempts, service, workers, reconcile) for target in functions_of(one)),
    *((LocalStorage, name) for name in STORAGE),
]


class Act(Enum):
    """What else happens while a job's first process is at work."""

    OUT_OF_MEMORY = auto()
    TAKES_LONG = auto()
    IS_CANCELLED = auto()
    WORKER_IS_STOPPED = auto()


@dataclass
class Play:
    """`acts` are those to come, by job; `cancel` and `stop_worker` are what callers and systemd do."""

    acts: dict[str, Act]
    cancel: Callable[[str], None] = lambda _: None
    stop_worker: Callable[[], None] = lambda: None
    stopped: bool = False

    def child(self, _context: object, assignment: Assignment) -> ScriptedChild:
        act = self.acts.pop(assignment.job_id, None)
        if act is Act.IS_CANCELLED:
            self.cancel(assignment.job_id)
        if act is Act.WORKER_IS_STOPPED:
            self.stop_worker()
            self.stopped = True
        return ScriptedChild(assignment, act)


class ScriptedChild:
    """A job's process. Where nothing else happens, it has done its work by the time it is watched."""

    def __init__(self, assignment: Assignment, act: Act | None) -> None:
        self._assignment = assignment
        self._long = threading.Timer(LONG_SECONDS, self._work)
        self.connection, self._theirs = multiprocessing.Pipe(duplex=False)
        self._theirs.send(Progress(stage=Stage.LOADING, step=0, total=1))
        if act is Act.TAKES_LONG:
            self._long.start()
        elif act is Act.OUT_OF_MEMORY:
            self._theirs.send(Failure(OutOfMemory("The script says so.")))
        elif act is None:
            self._work()

    def heard(self, seconds: float) -> Any:
        return self.connection.recv() if self.connection.poll(seconds) else None

    def _work(self) -> None:
        try:
            self._theirs.send(Outcome(RESULT, tuple(self._publish(self._assignment))))
        except ElderError as error:
            self._theirs.send(Failure(error))

    def _publish(self, assignment: Assignment) -> Iterator[Any]:
        storage = LocalStorage(assignment.artifacts_dir)
        prefix = attempt_prefix(assignment.job_id, assignment.attempt)
        for name in FILES:
            path = assignment.scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(assignment.job_id, name))
            kind: Any = "model" if name.startswith("model/") else "report"
            yield publish(storage, f"{prefix}/{name}", name, kind, path, lambda _: None)

    def stop(self, _grace_seconds: float, meanwhile: Callable[[], None], *, keep: bool = False) -> None:
        meanwhile()

    def end(self) -> None:
        pass

    def kill(self) -> None:
        if self._long.is_alive():
            self._long.join()
        self.connection.close()
        self._theirs.close()

    def death(self) -> tuple[RunnerDied, dict[str, object]]:
        return RunnerDied("It is over."), {}


class Fault:
    """Goes wrong at the first call: `before` the real one, or after it, whose transaction is then rolled back."""

    def __init__(self, real: Callable[..., Any], error: Exception, *, before: bool) -> None:
        self.real, self.error, self.before = real, error, before
        self.calls = 0
        self._lock = threading.Lock()

    def __get__(self, instance: object, _owner: type) -> Callable[..., Any]:
        return self if instance is None else lambda *given, **named: self(instance, *given, **named)

    def __call__(self, *given: Any, **named: Any) -> Any:
        with self._lock:
            self.calls += 1
            strikes = self.calls == 1
        if strikes and self.before:
            raise self.error
        answer = self.real(*given, **named)
        if strikes:
            raise self.error
        return answer


def error_for(target: Target) -> Exception:
    if target[0] is LocalStorage:
        return StorageFailed("The storage does not answer.")
    return connection_lost()


def connection_lost() -> OperationalError:
    return OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly"))


def cases() -> Iterator[Any]:
    """In every run: the most important, undone after the fact. The others by `make test-faults`."""
    for target in TARGETS:
        for before in (True, False):
            name = f"{target[0].__name__.rpartition('.')[2]}.{target[1]}-{'before' if before else 'after'}"
            short = target[1] in SHORT and not before
            yield pytest.param(target, before, id=name, marks=() if short else pytest.mark.faults)


@pytest.mark.parametrize(("target", "before"), [*cases()])
def test_a_fault_anywhere_costs_no_job(
    tmp_path: Path, sessions: SessionFactory, database_url: str, monkeypatch: pytest.MonkeyPatch,
    target: Target, *, before: bool,
) -> None:  # fmt: skip
    settings = Settings(
        data_dir=tmp_path / "data", database_url=database_url, retry_delay_seconds=0, lease_seconds=3,
        heartbeat_seconds=0.01, cancel_poll_seconds=0.01, maintenance_seconds=0.2, max_running_per_owner=5,
    )  # fmt: skip
    jobs = [submit(sessions, max_attempts=9) for _ in range(4)]
    cancelled, expiring = submit(sessions), submit(sessions, max_queue_seconds=1)
    with sessions.begin() as session:
        attempts.claim(session, "a worker that falls silent", lease_seconds=0)
        late = repository.get(session, expiring)
        late.queue_deadline_at = late.created_at
    acts = (Act.OUT_OF_MEMORY, Act.TAKES_LONG, Act.WORKER_IS_STOPPED, Act.IS_CANCELLED)
    play = Play(dict(zip((*jobs[1:], cancelled), acts, strict=True)))
    monkeypatch.setattr(module, "Child", play.child)
    monkeypatch.setattr(queue, "send_hint", lambda _: False)  # there is no broker
    fault = Fault(getattr(*target), error_for(target), before=before)
    monkeypatch.setattr(*target, fault)
    work(settings, sessions, jobs, play)
    monkeypatch.undo()
    assert fault.calls, "never called"
    assert not play.acts
    with sessions.begin() as session:
        for row in session.scalars(select(JobRow)):
            assert_well_ended(session, row, settings.artifacts_dir)
        states = note(session, {*jobs, cancelled, expiring})
    assert (states[expiring], states[cancelled]) == (Status.EXPIRED, Status.CANCELLED)
    assert [states[job_id] for job_id in jobs] == [Status.SUCCEEDED] * 4
    assert not list(settings.scratch_dir.rglob("*.*"))


class Forgetful(Supervisor):
    """The answer to its first claim is lost, after the COMMIT."""

    _forgets = True

    def _claim(self) -> Claim | None:
        held = super()._claim()
        if held and self._forgets:
            self._forgets = False
            raise connection_lost()
        return held


def work(settings: Settings, sessions: SessionFactory, jobs: list[str], play: Play) -> None:
    """What the threads of a worker and the callers of an API do, in turns, until every job has ended."""
    storage = LocalStorage(settings.artifacts_dir)
    settings.data_dir.mkdir(exist_ok=True)
    maintenance = Maintenance(settings, sessions, storage, make_celery(settings))

    def started() -> Supervisor:
        made = Forgetful(settings, sessions, storage, NoForkServer(), pulse_of(settings), Capacity(Device.CPU))  # type: ignore[arg-type]
        play.stop_worker = made.drain
        made.warm_up()
        return made

    worker = started()
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        play.cancel = lambda job_id: cancel(client, job_id)
        for turn in range(ROUNDS):
            for step in (worker.register, worker.run_available, maintenance.reconcile, maintenance.sweep):
                with suppress(SQLAlchemyError, ElderError):  # a timer logs it and goes on
                    step()
            call_everything(client, jobs)
            if play.stopped:
                worker.leave()
                worker, play.stopped = started(), False
            if all_ended(sessions) and turn >= 2:
                break
            threading.Event().wait(0.05)
        with suppress(SQLAlchemyError, ElderError):
            maintenance.sweep()


def cancel(client: TestClient, job_id: str) -> None:
    """As a caller does, who tries again."""
    answers = [client.post(f"/v1/jobs/{job_id}/cancel").status_code for _ in range(2)]
    assert answers in ([200, 200], [503, 200], [200, 503])


def call_everything(client: TestClient, jobs: list[str]) -> None:
    """Each answer is the true one, or says that the service cannot answer now."""
    client.post("/v1/jobs/job_none/cancel")
    answer = client.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "once"})
    assert answer.status_code in {200, 201, 503}, answer.text
    assert client.get("/v1/jobs").status_code in {200, 503}  # while one is queued
    if answer.is_success:
        assert client.post(f"/v1/jobs/{answer.json()['id']}/cancel").status_code in {200, 503}
    for path in ("/v1/jobs", "/v1/workers", *(f"/v1/jobs/{job_id}{tail}" for job_id in jobs for tail in TAILS)):
        answer = client.get(path)
        assert answer.status_code in {200, 409, 503}, (path, answer.text)
    for file in answer.json().get("data", []):
        answer = client.get(file["download_url"])
        assert answer.status_code in {200, 503}, answer.text
        assert answer.status_code == 503 or answer.content == content(jobs[-1], file["name"])


TAILS = ("", "/events", "/report", "/artifacts")


def all_ended(sessions: SessionFactory) -> bool:
    with sessions.begin() as session:
        return all(Status(status).ended for status in session.scalars(select(JobRow.status)))


class NoForkServer:
    context = None

    def start(self) -> None:
        pass

    def warm_up(self) -> None:
        pass
