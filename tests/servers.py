"""PostgreSQL and Redis for tests: real ones, on free ports of the loopback, gone when the test run ends.

A test that must see a server die starts one of its own:

    with redis_server() as redis:
        redis.process.kill()
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

START_SECONDS = 60
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class ServerError(Exception):
    """A server that the tests need is not installed or does not start; the message says which and what to do."""


@dataclass(frozen=True)
class Server:
    """A running server: `url` to reach it, `port` on 127.0.0.1, and its process."""

    url: str
    port: int
    process: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def chromium() -> str:
    """Path of a Chromium or Chrome: CHROMIUM in the environment, else the first one found."""
    given = os.environ.get("CHROMIUM")
    found = given or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        raise ServerError("No Chromium found: run `make setup`, or set CHROMIUM to the path of one.")
    return found


@contextlib.contextmanager
def postgres_server(port: int | None = None) -> Iterator[Server]:
    """A new, empty PostgreSQL cluster without durability."""
    with postgres_folder() as folder, postgres_on(folder, port or free_port()) as server:
        yield server


@contextlib.contextmanager
def postgres_folder() -> Iterator[Path]:
    """A folder with the files of a new, empty PostgreSQL cluster, for servers that run on it one after the other."""
    binaries, user = _postgres_binaries(), _unprivileged_user()
    with _folder("elder-postgres-", user) as folder:
        initdb = [binaries / "initdb", "--pgdata", folder / "data", "--username=elder", "--auth=trust"]
        initdb += ["--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        _run_initdb(initdb, folder, user)
        yield folder


@contextlib.contextmanager
def postgres_on(folder: Path, port: int, *, durable: bool = False) -> Iterator[Server]:
    """A server on a cluster's `folder`; what it has committed outlives SIGQUIT only if it is `durable`."""
    options = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",  # a socket's path may be too long
        "fsync": "off",
        "synchronous_commit": "on" if durable else "off",
        "full_page_writes": "off",
        "shared_buffers": "32MB",
    }
    command = [_postgres_binaries() / "postgres", "-D", folder / "data"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with _process(command, folder, _unprivileged_user(), stop_with=signal.SIGQUIT) as process:
        _wait(process, folder / "log", lambda: _postgres_answers(port))
        yield Server(f"postgresql://elder@127.0.0.1:{port}/postgres", port, process)


@contextlib.contextmanager
def redis_server(port: int | None = None) -> Iterator[Server]:
    """A new, empty Redis that keeps nothing on disk."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if not program:
        raise ServerError("No redis-server found: run `make setup`, or set REDIS_URL to a server that you have.")
    with _folder("elder-redis-", None) as folder:
        port = port or free_port()
        command = [program, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        with _process(command, folder, None, stop_with=signal.SIGTERM) as process:
            _wait(process, folder / "log", lambda: _redis_answers(port))
            yield Server(f"redis://127.0.0.1:{port}/0", port, process)


@contextlib.contextmanager
def fresh_database(server_url: str, name: str, template: str = "template0") -> Iterator[str]:
    """Create the database `name` as a copy of `template`, give its URL, and drop it afterwards."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    try:
        yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())


def _postgres_binaries() -> Path:
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if installed:
        return max(installed, key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    if not found:
        raise ServerError("No PostgreSQL found: run `make setup`, or set DATABASE_URL to a server that you have.")
    return Path(found).resolve().parent


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Whom to become: PostgreSQL refuses to run as root. None stays who we are."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


@contextlib.contextmanager
def _folder(prefix: str, user: pwd.struct_passwd | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_initdb(command: list[str | Path], folder: Path, user: pwd.struct_passwd | None) -> None:
    ids = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **ids)
    if done.returncode:
        raise ServerError(f"initdb ended with {done.returncode}: {done.stderr.strip()}")


@contextlib.contextmanager
def _process(
    command: list[object], folder: Path, user: pwd.struct_passwd | None, *, stop_with: signal.Signals
) -> Iterator[subprocess.Popen[bytes]]:
    ids = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must reach the tests first, which then stop it
            preexec_fn=_die_with_parent,  # noqa: PLW1509  # nothing is left when pytest itself is killed
            **ids,
        )
    try:
        yield process
    finally:
        process.send_signal(stop_with)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    """In the child before exec: even a killed test run leaves no server behind (Linux)."""
    if sys.platform == "linux":
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell's background job is deaf to it, and so are its children
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


def _wait(process: subprocess.Popen[bytes], log: Path, answers: object) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if answers():
            return
        time.sleep(0.05)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
    raise ServerError(f"{process.args[0]} does not start (exit code {process.returncode}). Its log ends:\n{tail}")


def _postgres_answers(port: int) -> bool:
    try:
        psycopg.connect(f"postgresql://elder@127.0.0.1:{port}/postgres", connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
