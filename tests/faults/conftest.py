from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.faults import records
from tests.faults.cluster import Cluster, cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Only a test that passes is told of in docs/reliability.md."""
    report = yield
    if call.when == "call" and report.passed:
        records.passed(item.nodeid)
    return report


@pytest.fixture
def empty_redis(redis_url: str) -> str:
    """Without the hints of earlier tests."""
    with Redis.from_url(redis_url) as redis:
        redis.flushdb()
    return redis_url


@pytest.fixture
def production(tmp_path: Path, postgres_database: str, empty_redis: str) -> Iterator[Cluster]:
    """A cluster on Postgres and Redis."""
    with cluster(tmp_path, postgres_database, empty_redis) as made:
        yield made


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster on SQLite and folders."""
    with cluster(tmp_path) as made:
        yield made


@pytest.fixture(params=[pytest.param("embedded", marks=pytest.mark.faults), "production"])
def either(request: pytest.FixtureRequest) -> Cluster:
    """The same test on both; in the short cut on the latter."""
    made: Cluster = request.getfixturevalue(request.param)
    return made
