"""Postgres that is restarted, drops its connections, hangs, or does not say whether it has committed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import pytest

from tests.faults import invariants
from tests.faults.cluster import QUICK, Cluster, cluster
from tests.faults.proxy import Proxy, proxy
from tests.faults.script import Script


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
def proxied(tmp_path: Path, postgres_database: str, redis_url: str, way: Proxy) -> Iterator[Cluster]:
    """A cluster whose workers reach Postgres through `way`, and the test directly."""
    with cluster(tmp_path, postgres_database, redis_url) as made:
        made.environment["ELDER_DATABASE_URL"] = through(postgres_database, way)
        yield made


def test_a_database_that_falls_silent_ends_the_job_before_its_lease(proxied: Cluster, way: Proxy) -> None:
    """Connections stay open and nobody answers, which no time-out of TCP notices."""
    proxied.worker()
    job_id = proxied.submit(Script(endless_attempts=1))
    proxied.until(lambda: proxied.job(job_id).stage, lambda stage: stage == "regularizing")
    runner = proxied.runner_of(job_id)
    assert runner is not None
    lease = float(QUICK["ELDER_LEASE_SECONDS"])
    way.freeze()
    frozen = time.monotonic()
    psutil.wait_procs([runner], timeout=lease)
    assert not runner.is_running(), f"still there {time.monotonic() - frozen:.1f} s later; the lease is {lease} s"
    rescuer = proxied.worker(ELDER_DATABASE_URL=proxied.settings.effective_database_url)
    assert proxied.ended(job_id).lease_owner is None
    way.thaw()
    assert invariants.check(proxied) == {"succeeded": 1}
    rescuer.terminate()
    second = proxied.submit()  # and the first works again
    assert proxied.ended(second).status == "succeeded"
    assert invariants.check(proxied) == {"succeeded": 2}
