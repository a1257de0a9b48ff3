"""Postgres that is restarted, drops its connections, hangs, or does not say whether it has committed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx2
import pytest

from tests import servers
from tests.faults import invariants
from tests.faults.cluster import STEADY, WAIT_SECONDS, Cluster, cluster
from tests.faults.proxy import Proxy, proxy
from tests.faults.script import Script
from tests.integration.service import Service, job, start_api, stop


def through(url: str, way: Proxy) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{way.port}"))


@pytest.fixture
def way(postgres_database: str) -> Iterator[Proxy]:
    """Between the workers and Postgres."""
    port = urlsplit(postgres_database).port
    assert port is not None
    with proxy(port) as made:
        yield made


@pytest.fixture
def proxied(tmp_path: Path, postgres_database: str, empty_redis: str, way: Proxy) -> Iterator[Cluster]:
    """A cluster whose workers reach Postgres through `way`, and the test directly."""
    with cluster(tmp_path, postgres_database, empty_redis) as made:
        made.environment["ELDER_DATABASE_URL"] = through(postgres_database, way)
        yield made


def test_a_database_that_falls_silent_ends_the_job_before_its_lease(proxied: Cluster, way: Proxy) -> None:
    """Connections stay open and nobody answers, which no time-out of TCP notices."""
    proxied.worker(ELDER_LEASE_SECONDS="12")
    job_id = proxied.submit(Script(endless_attempts=1))
    proxied.until(lambda: proxied.job(job_id).stage, lambda stage: stage == "regularizing")
    runner = proxied.runner_of(job_id)
    assert runner is not None
    way.freeze()
    proxied.lease_lasts(job_id)  # so that no other attempt, however early or late, is why the process ends
    proxied.until(lambda: runner in proxied.processes(), lambda there: not there)
    assert proxied.events(job_id) == ["job.created", "job.started"]
    proxied.lease_runs_out(job_id)
    rescuer = proxied.worker(**STEADY, ELDER_DATABASE_URL=proxied.settings.effective_database_url)
    assert proxied.ended(job_id).attempt == 2
    way.thaw()
    assert invariants.check(proxied) == {"succeeded": 1}
    rescuer.terminate()
    second = proxied.submit()  # and the first works again
    assert proxied.ended(second).status == "succeeded"
    assert invariants.check(proxied) == {"succeeded": 2}


@pytest.mark.parametrize("delivered", [True, pytest.param(False, marks=pytest.mark.faults)], ids=["committed", "not"])
def test_a_claim_whose_commit_has_no_answer(proxied: Cluster, way: Proxy, *, delivered: bool) -> None:
    worker = proxied.worker(**STEADY)
    way.lose_answer_after(b"job.started", b"COMMIT", delivered=delivered)
    job_id = proxied.submit()
    proxied.ended(job_id)
    assert way.lost_answers == 1
    assert proxied.job(job_id).failures == 0  # nothing ran, so nothing failed
    assert invariants.check(proxied) == {"succeeded": 1}
    assert worker.is_running()


@pytest.mark.parametrize("delivered", [True, pytest.param(False, marks=pytest.mark.faults)], ids=["committed", "not"])
def test_a_last_update_whose_commit_has_no_answer(proxied: Cluster, way: Proxy, *, delivered: bool) -> None:
    proxied.worker(**STEADY)
    way.lose_answer_after(b"job.succeeded", b"COMMIT", delivered=delivered)
    job_id = proxied.submit()
    assert proxied.ended(job_id).attempt == 1
    assert way.lost_answers == 1
    assert invariants.check(proxied) == {"succeeded": 1}


@pytest.mark.parametrize("delivered", [True, pytest.param(False, marks=pytest.mark.faults)], ids=["committed", "not"])
def test_a_submission_whose_commit_has_no_answer(proxied: Cluster, way: Proxy, *, delivered: bool) -> None:
    """Its caller is told to try again, does so with the same Idempotency-Key, and has one job."""
    api = Service(dict(proxied.environment), proxied.folder)
    start_api(api, "api")
    way.lose_answer_after(b"job.created", b"COMMIT", delivered=delivered)
    with httpx2.Client(base_url=api.url, headers={"Idempotency-Key": "once"}, timeout=WAIT_SECONDS) as caller:
        first, second = (caller.post("/v1/jobs", json=job(model={"id": "builtin:manuals-16l"})) for _ in range(2))
    stop(api.processes)
    assert way.lost_answers == 1
    assert (first.status_code, second.status_code) == (503, 200 if delivered else 201)
    assert proxied.jobs() == [second.json()["id"]]
    proxied.accepted.update(proxied.jobs())
    proxied.worker(**STEADY)
    assert invariants.check(proxied) == {"succeeded": 1}


@pytest.mark.faults
def test_connections_that_drop_all_the_time(proxied: Cluster, way: Proxy) -> None:
    proxied.workers_started(2)
    jobs = [proxied.submit(Script(step_seconds=0.02)) for _ in range(10)]
    while any(proxied.job(job_id).status in {"queued", "running"} for job_id in jobs):
        way.drop()
        time.sleep(0.1)  # a fault every tenth of a second
    assert invariants.check(proxied) == {"succeeded": 10}


def test_a_crash_of_postgres(tmp_path: Path, empty_redis: str) -> None:
    """The running job goes on, what was committed is there, and what waits starts afterwards."""
    port = servers.free_port()
    with servers.postgres_folder() as folder, ExitStack() as stack:
        first = stack.enter_context(servers.postgres_on(folder, port, durable=True))
        made = stack.enter_context(cluster(tmp_path, first.url, empty_redis))
        made.worker(**STEADY)
        running, waiting = made.submit(Script(endless_attempts=1)), made.submit()
        made.until(lambda: made.job(running).stage, lambda stage: stage == "regularizing")
        first.process.send_signal(signal.SIGQUIT)
        first.process.wait(made.patience_seconds)
        with servers.postgres_on(folder, port, durable=True):
            runner = made.runner_of(running)
            assert runner is not None, "the job's process did not outlive the crash"
            made.cancel(running)
            assert made.ended(waiting).attempt == 1
            assert made.job(running).attempt == 1
            assert invariants.check(made) == {"succeeded": 1, "cancelled": 1}
            made.stop()
