"""The servers that the tests start really serve, and stop."""

from __future__ import annotations

import psycopg
from redis import Redis

from tests import servers


def test_a_database_is_fresh_and_dropped(postgres_url: str) -> None:
    with servers.fresh_database(postgres_url, "elder_test_own") as url, psycopg.connect(url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    with psycopg.connect(postgres_url) as connection:
        left = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'elder_test_own'").fetchone()
    assert tables == (0,)
    assert left is None


def test_redis_answers(redis_url: str) -> None:
    with Redis.from_url(redis_url) as redis:
        assert redis.ping()


def test_a_server_of_ones_own_stops() -> None:
    with servers.redis_server() as server:
        assert server.process.poll() is None
    assert server.process.returncode is not None


def test_chromium_is_here(chromium_path: str) -> None:
    assert chromium_path
