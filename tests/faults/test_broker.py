"""A broker that forgets, restarts, stays away or goes deaf, and an API that dies between commit and hint."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from tests import servers
from tests.faults import invariants
from tests.faults.cluster import STEADY, Cluster, cluster
from tests.faults.proxy import proxy
from tests.faults.script import Script
from tests.integration.service import Service, job, start_api, stop

SELDOM = {**STEADY, "ELDER_CLAIM_SECONDS": "600", "ELDER_MAINTENANCE_SECONDS": "600"}
"""A worker that as good as never looks by itself: what it runs, it was told of."""


@pytest.fixture
def own_redis() -> Iterator[servers.Server]:
    """A Redis that the test may kill."""
    with servers.redis_server() as server:
        yield server


@pytest.fixture
def made(tmp_path: Path, postgres_database: str, own_redis: servers.Server) -> Iterator[Cluster]:
    with cluster(tmp_path, postgres_database, own_redis.url) as made:
        yield made


@pytest.mark.faults
def test_a_broker_that_forgets_everything(made: Cluster, own_redis: servers.Server) -> None:
    made.worker(**STEADY)
    held = made.submit(Script(step_seconds=0.05))
    made.until(lambda: made.job(held).stage)
    waiting = [made.submit() for _ in range(5)]
    for _ in range(5):
        made.hint()
    with Redis.from_url(own_redis.url) as redis:
        redis.flushall()
    for job_id in (held, *waiting):
        assert made.ended(job_id).attempt == 1
    assert invariants.check(made) == {"succeeded": 6}


def test_jobs_that_are_made_and_run_while_the_broker_is_down(made: Cluster, own_redis: servers.Server) -> None:
    worker = made.worker(**STEADY)
    running = made.submit(Script(step_seconds=0.05))
    made.until(lambda: made.job(running).stage)
    own_redis.process.kill()
    own_redis.process.wait()
    assert not made.hint()
    jobs = [running, *(made.submit() for _ in range(5))]
    for job_id in jobs:
        assert made.ended(job_id).attempt == 1
    with servers.redis_server(own_redis.port):
        assert made.ended(made.submit()).attempt == 1
        assert invariants.check(made) == {"succeeded": 7}
        made.stop()
    assert not worker.is_running()


def test_a_worker_that_starts_while_the_broker_is_down(made: Cluster, own_redis: servers.Server) -> None:
    """It claims by timer, stops when it is told to, and hears hints once the broker is there."""
    own_redis.process.kill()
    own_redis.process.wait()
    told_to_stop = made.worker(**STEADY)
    assert made.ended(made.submit()).status == "succeeded"
    told_to_stop.terminate()
    told_to_stop.wait(made.patience_seconds)
    made.worker(**SELDOM)
    with servers.redis_server(own_redis.port):
        told(made)
        assert invariants.check(made) == {"succeeded": 2}
        made.stop()


def test_hints_arrive_again_after_a_restart_of_the_broker(made: Cluster, own_redis: servers.Server) -> None:
    """Workers that listen no more after a restart are the oldest complaint about Celery on Redis."""
    made.worker(**SELDOM)
    told(made)
    for _ in range(2):
        own_redis.process.kill()
        own_redis.process.wait()
        with servers.redis_server(own_redis.port) as again:
            told(made)
            own_redis = again
    with servers.redis_server(own_redis.port):
        told(made)
        assert invariants.check(made) == {"succeeded": 4}
        made.stop()


def told(made: Cluster) -> None:
    """A job that a hint starts."""
    job_id = made.submit()

    def hinted() -> str:
        made.hint()
        return made.job(job_id).status

    assert made.until(hinted, lambda status: status == "succeeded")


@pytest.mark.faults
def test_a_broker_that_went_deaf(tmp_path: Path, postgres_database: str, own_redis: servers.Server) -> None:
    """Connections are open and nothing comes through: jobs start by timer, and hints are back when the way is."""
    with proxy(own_redis.port) as way, cluster(tmp_path, postgres_database, own_redis.url) as made:
        made.environment["ELDER_BROKER_URL"] = f"redis://127.0.0.1:{way.port}/0"
        made.worker(**STEADY)
        way.freeze()
        assert made.ended(made.submit()).attempt == 1
        way.thaw()
        told(made)
        assert invariants.check(made) == {"succeeded": 2}


# The API ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(made: Cluster) -> Iterator[Service]:
    """The real API on the cluster's database, behind a way to Redis that can be frozen."""
    service = Service(dict(made.environment), made.folder)
    yield service
    stop(service.processes)


def test_an_api_killed_between_commit_and_hint(made: Cluster, own_redis: servers.Server, api: Service) -> None:
    """It waits for a deaf broker when it dies, the job stored and nobody told."""
    with proxy(own_redis.port) as way, ThreadPoolExecutor(1) as caller:
        api.environment["ELDER_BROKER_URL"] = f"redis://127.0.0.1:{way.port}/0"
        server = start_api(api, "api")
        way.freeze()
        answer = caller.submit(api.post, "/v1/jobs", job(model={"id": "builtin:manuals-16l"}))
        made.until(made.jobs)
        server.kill()
        with pytest.raises(httpx2.TransportError):
            answer.result()
    [job_id] = made.jobs()
    made.worker(**STEADY)
    assert made.ended(job_id).attempt == 1
    assert invariants.check(made) == {"succeeded": 1}


@pytest.mark.faults
def test_a_deaf_broker_holds_up_no_caller(made: Cluster, own_redis: servers.Server, api: Service) -> None:
    with proxy(own_redis.port) as way:
        api.environment["ELDER_BROKER_URL"] = f"redis://127.0.0.1:{way.port}/0"
        start_api(api, "api")
        way.freeze()
        answer = api.post("/v1/jobs", job(model={"id": "builtin:manuals-16l"}))  # while the broker never answers
    made.accepted.add(answer["id"])
    made.worker(**STEADY)
    assert made.ended(answer["id"]).attempt == 1
    assert invariants.check(made) == {"succeeded": 1}
