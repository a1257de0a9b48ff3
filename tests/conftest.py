"""Fixtures that every test may ask for. Servers start when the first test asks, once in each pytest process."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests import servers


@pytest.fixture(scope="session", autouse=True)
def _on_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the command line's cache out of the user's, and submissions from asking the hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ELDER_HUB_LOOK_SECONDS", "0")
        patch.setenv("ELDER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a PostgreSQL server whose user may create databases: DATABASE_URL, else one of our own."""
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    with servers.postgres_server() as server:
        yield server.url


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """URL of a new, empty database, dropped after the test."""
    with servers.fresh_database(postgres_url, f"elder_test_{uuid.uuid4().hex[:12]}") as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a Redis: REDIS_URL, else one of our own. Tests share it: use queue names and keys of your own."""
    given = os.environ.get("REDIS_URL")
    if given:
        yield given
        return
    with servers.redis_server() as server:
        yield server.url


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Path of a Chromium for Playwright's `executable_path`."""
    return servers.chromium()
