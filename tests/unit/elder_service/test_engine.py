"""A database that is away, hangs or refuses: how long a call lasts, and whether it may be tried again."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import bindparam, select, text
from sqlalchemy.exc import (
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from elder_service.db import engine as module
from elder_service.db.engine import is_passing, make_engine
from elder_service.db.models import Json


def test_a_statement_that_hangs_is_cancelled(postgres_database: str) -> None:
    engine = make_engine(postgres_database, statement_seconds=0.05)
    with engine.connect() as connection, pytest.raises(OperationalError, match="statement timeout") as caught:
        connection.execute(text("SELECT pg_sleep(600)"))
    assert is_passing(caught.value)
    engine.dispose()


def test_every_bound_reaches_the_server_or_the_connection(postgres_database: str) -> None:
    engine = make_engine(postgres_database)
    with engine.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "5s"
        assert connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar() == "30s"
        driver = connection.connection.driver_connection
        assert driver is not None
        given = driver.info.get_parameters()
    assert given["connect_timeout"] == "3"
    assert given["tcp_user_timeout"] == "3000"
    assert given["keepalives_idle"] == "2"
    engine.dispose()


def test_a_migration_may_take_its_time(postgres_database: str) -> None:
    engine = make_engine(postgres_database, statement_seconds=None)
    with engine.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "0"
    engine.dispose()


def test_what_the_url_says_goes_first(postgres_database: str) -> None:
    engine = make_engine(f"{postgres_database}?options=-c%20statement_timeout%3D7s&connect_timeout=9")
    with engine.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "7s"
        driver = connection.connection.driver_connection
        assert driver is not None
        assert driver.info.get_parameters()["connect_timeout"] == "9"
    engine.dispose()


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 2)  # the least that libpq takes
    with socket.create_server(("127.0.0.1", 0)) as mute:
        engine = make_engine(f"postgresql://elder@127.0.0.1:{mute.getsockname()[1]}/elder")
        with pytest.raises(OperationalError) as caught:
            engine.connect()
    assert is_passing(caught.value)


REFUSALS: list[SQLAlchemyError] = [
    kind("UPDATE jobs", {}, Exception("x")) for kind in (DataError, IntegrityError, ProgrammingError)
]
PASSING: list[SQLAlchemyError] = [
    OperationalError("x", {}, Exception("gone")),
    InterfaceError("x", {}, Exception("closed")),
    PoolTimeout("all connections are in use"),
    DataError("x", {}, Exception("cut off"), connection_invalidated=True),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_refusal_stays_one(error: SQLAlchemyError) -> None:
    assert not is_passing(error)


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_a_database_that_is_away_comes_back(error: SQLAlchemyError) -> None:
    assert is_passing(error)


def test_a_server_that_falls_silent_is_given_up(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the statement and keeps the connection: nothing but a clock of our own notices."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    engine = make_engine(postgres_database)
    with engine.connect() as connection:
        with pytest.raises(OperationalError, match=r"not answered for 0\.2 s") as caught:
            connection.execute(text("SELECT pg_sleep(600)"))
        assert caught.value.connection_invalidated
    assert is_passing(caught.value)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_json_has_no_nan_on_either_database(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_database")
    engine = make_engine(url)
    with engine.connect() as connection, pytest.raises((ValueError, StatementError), match="not JSON compliant"):
        connection.execute(select(bindparam("value", {"loss": float("nan")}, Json)))
    engine.dispose()


def test_who_has_waited_long_for_sqlite_asks_as_often_as_who_has_just_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own waiting asks ever more seldom: beside busy writers one of them then waits until it gives up."""
    engine = make_engine(f"sqlite:///{tmp_path / 'x.db'}")
    first, second = engine.connect(), engine.connect()
    writer = first.begin()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 300:
            writer.commit()

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    with second.begin():
        assert second.execute(text("PRAGMA busy_timeout")).scalar() == module.BUSY_SECONDS * 1000
    assert waits == [module.TURN_SECONDS] * 300
    first.close()
    second.close()
    engine.dispose()


def test_a_writer_of_sqlite_that_never_ends_is_not_waited_for_longer_than_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    engine = make_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as first, engine.connect() as second:
        writer = first.begin()
        with pytest.raises(OperationalError, match="database is locked") as caught:
            second.begin()
        assert is_passing(caught.value)
        writer.rollback()
        second.begin()  # it is as good as before
    assert next(clock) < 2 * module.BUSY_SECONDS + 10
    engine.dispose()


def test_what_else_keeps_sqlite_from_beginning_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'x.db'}")
    waited = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: pytest.fail("it waited"))
    monkeypatch.setattr(module, "time", waited)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute("BEGIN")
        with pytest.raises(OperationalError, match="within a transaction"):
            connection.begin()
    engine.dispose()
