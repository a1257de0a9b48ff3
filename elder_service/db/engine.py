"""Engines and sessions, the same for SQLite and Postgres.

Sessions are synchronous in every process; docs/adr/0003-sync-sessions.md says why.
"""

from __future__ import annotations

import json
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Dialect, Engine, create_engine, event, func, select, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from elder_service.db.models import UtcDateTime

# How long a call may hang on a database that is away. A worker that renews its lease must find out, and end its job's
# process, before the lease is over: all of this together stays below the share of the lease that it keeps back.
CONNECT_SECONDS = 3
SILENCE_SECONDS = 3  # of a peer that acknowledges nothing, before the connection counts as dead
STATEMENT_SECONDS = 5.0
ANSWER_SECONDS = STATEMENT_SECONDS + 1  # of a server that takes a statement and then says nothing at all
IDLE_TRANSACTION_SECONDS = 30  # then the server frees the rows that a frozen process has locked
BUSY_SECONDS = 10  # waiting for SQLite's one writer
TURN_SECONDS = 0.002  # between two tries to become it
_PRIMARY_CODE = 0xFF  # the part of SQLite's error codes that says what kind it is
POOL_SIZE = 10
POOL_OVERFLOW = 40  # at least the thread pool of the API, so that a request never waits for a connection

SessionFactory = sessionmaker[Session]


def make_engine(url: str, statement_seconds: float | None = STATEMENT_SECONDS) -> Engine:
    """An engine whose calls end in bounded time. None for `statement_seconds` is for migrations, which may take long.

    What the URL itself says about time-outs (`?connect_timeout=…`, `?options=…`) goes before what is set here.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(url, parsed.database)
    bounds = {name: value for name, value in _postgres_bounds(statement_seconds).items() if name not in parsed.query}
    engine = create_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        pool_pre_ping=True,
        connect_args=bounds,
        json_serializer=strict_json,
    )
    # A server whose statements may take longer, as the URL can say, is waited for accordingly.
    if statement_seconds is not None and "options" not in parsed.query:
        event.listen(engine, "do_connect", _impatient)
    return engine


def strict_json(value: Any) -> str:
    """JSON as PostgreSQL takes it, so that SQLite refuses the same.

    Raises:
        ValueError: there is NaN or an infinity in it.
    """
    return json.dumps(value, allow_nan=False)


class _ImpatientConnection(psycopg.Connection[Any]):
    """Waits for no answer longer than ANSWER_SECONDS.

    libpq has no such bound: keepalives ask the machine, not the server, and a frozen server cannot end its statements.
    """

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            self.pgconn.finish()  # in the middle of a statement: of no more use
            raise psycopg.OperationalError(f"the server has not answered for {ANSWER_SECONDS:g} s") from error


def _impatient(_dialect: Dialect, _record: object, arguments: list[Any], parameters: dict[str, Any]) -> Any:
    return _ImpatientConnection.connect(*arguments, **parameters)


def _postgres_bounds(statement_seconds: float | None) -> dict[str, Any]:
    """libpq's parameters: https://www.postgresql.org/docs/16/libpq-connect.html#LIBPQ-PARAMKEYWORDS."""
    options = f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_SECONDS * 1000}"
    if statement_seconds is not None:
        options += f" -c statement_timeout={round(statement_seconds * 1000)}"
    return {
        "connect_timeout": CONNECT_SECONDS,
        # for what is sent: milliseconds without acknowledgement
        "tcp_user_timeout": SILENCE_SECONDS * 1000,
        # for an answer that never comes: asked after this long, then each second
        "keepalives": 1,
        "keepalives_idle": SILENCE_SECONDS - 1,
        "keepalives_interval": 1,
        "keepalives_count": 2,
        "options": options,
    }


def _sqlite_engine(url: str, database: str | None) -> Engine:
    if database:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW, json_serializer=strict_json)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # The driver's own BEGIN is deferred, which loses updates when two processes write: we begin ourselves.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_SECONDS * 1000}",
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_immediate(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA busy_timeout=0")
        try:
            if not _begun(driver):
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # once more, for SQLAlchemy's own error
        finally:
            driver.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")

    return engine


def _begun(connection: sqlite3.Connection) -> bool:
    """Begin a transaction as SQLite's one writer; False if it cannot within BUSY_SECONDS, or something else is wrong.

    Everyone who waits asks equally often. SQLite's own waiting asks ever more seldom, in the end ten times a second;
    beside those who have just come, and ask at once, whoever has waited longest could wait for good.
    """
    end = time.monotonic() + BUSY_SECONDS
    while time.monotonic() < end:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                return False
            time.sleep(TURN_SECONDS)
        else:
            return True
    return False


def is_passing(error: SQLAlchemyError) -> bool:
    """Whether the same write may succeed later: the database was away, busy or restarted, not told nonsense."""
    return isinstance(error, OperationalError | InterfaceError | PoolTimeout) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def make_sessions(engine: Engine) -> SessionFactory:
    return sessionmaker(engine, expire_on_commit=False)


def database_now(session: Session) -> datetime:
    """The database's clock: leases and deadlines never depend on the clocks of workers."""
    if session.get_bind().dialect.name == "sqlite":
        stamp: str = session.execute(text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")).scalar_one()
        return datetime.fromisoformat(stamp).replace(tzinfo=UTC)
    # clock_timestamp, not now(): the time of the statement, not of the transaction's start
    value: datetime = session.execute(select(func.clock_timestamp(type_=UtcDateTime))).scalar_one()
    return value
