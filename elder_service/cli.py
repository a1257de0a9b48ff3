"""`elder-server`: everything that runs on a server."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from elder_core.errors import ElderError
from elder_service import logging
from elder_service.db import schema
from elder_service.db.engine import STATEMENT_SECONDS, make_engine
from elder_service.errors import DatabaseUnreachable
from elder_service.settings import EnvironmentName, Settings, load_settings

HEALTHY_SECONDS = 60.0

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Run the depth-pruning service.")

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")]


@app.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8321,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for everything; ELDER_DATA_DIR otherwise.")] = None,
) -> None:
    """API, dashboard and one worker in one command, on SQLite; nothing else is needed."""
    from api import server

    settings = load_settings(**({} if data_dir is None else {"data_dir": data_dir}))
    logging.configure(settings.log_level)
    if settings.environment is EnvironmentName.EMBEDDED:
        _migrate(settings)
    _check_schema(settings)
    server.run(settings, host, port, with_worker=True)


@app.command()
def api(host: Host = "127.0.0.1", port: Port = 8321) -> None:
    """The API and dashboard alone."""
    from api import server

    settings = load_settings()
    logging.configure(settings.log_level)
    _check_schema(settings)
    server.run(settings, host, port, with_worker=False)


@app.command()
def worker(
    parent: Annotated[int | None, typer.Option(hidden=True, help="Process id of the `serve` to end with.")] = None,
) -> None:
    """One worker, which runs one job at a time."""
    from elder_service import processes
    from worker.app import run_worker

    if parent is not None:
        processes.die_with_parent(parent)
    settings = load_settings()
    logging.configure(settings.log_level)
    _check_schema(settings)
    run_worker(settings)


@app.command()
def migrate(revision: Annotated[str, typer.Argument(help="Migration to go up to.")] = "head") -> None:
    """Bring the database to the migration that this version needs."""
    settings = load_settings()
    logging.configure(settings.log_level)
    _migrate(settings, revision)
    typer.echo(f"The database is at migration {revision if revision != 'head' else schema.expected_head()}.")


@app.command()
def health() -> None:
    """Exit 0 if the worker of this machine is well, 1 if not; for container health checks."""
    from worker.pulse import pulse_of

    path = pulse_of(load_settings()).path
    if not path.exists():
        typer.echo(f"No worker on this machine: there is no {path}.", err=True)
        raise typer.Exit(1)
    age = time.time() - path.stat().st_mtime
    if age > HEALTHY_SECONDS:
        typer.echo(f"The worker has not reached the database for {age:.0f} s ({path}); see its log.", err=True)
        raise typer.Exit(1)


def _migrate(settings: Settings, revision: str = "head") -> None:
    with _engine(settings, statement_seconds=None) as engine:
        schema.migrate(engine, revision)


def _check_schema(settings: Settings) -> None:
    """Before anything is bound or started, so that the answer is one sentence."""
    with _engine(settings) as engine:
        schema.check_head(engine)


@contextmanager
def _engine(settings: Settings, statement_seconds: float | None = STATEMENT_SECONDS) -> Iterator[Engine]:
    """An engine for one look.

    Raises:
        DatabaseUnreachable: the database does not answer.
    """
    engine = make_engine(settings.effective_database_url, statement_seconds)
    try:
        yield engine
    except OperationalError as error:
        address = engine.url.render_as_string(hide_password=True)
        reason = " ".join(str(error.orig).split())
        raise DatabaseUnreachable(
            f"The database {address} cannot be reached or used: {reason}. "
            "Start it, or set ELDER_DATABASE_URL to another."
        ) from error
    finally:
        engine.dispose()


def main() -> None:
    """Entry point; an error that was foreseen is one line and exit status 2."""
    try:
        app()
    except ElderError as error:
        typer.echo(f"error [{error.code}]: {error.message}", err=True)
        sys.exit(2)
