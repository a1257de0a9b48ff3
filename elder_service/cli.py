"""`elder-server`: everything that runs on a server."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from elder_core.errors import ElderError
from elder_service import logging
from elder_service.db import schema
from elder_service.db.engine import make_engine
from elder_service.settings import EnvironmentName, Settings

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

    settings = Settings(data_dir=data_dir) if data_dir is not None else Settings()
    logging.configure(settings.log_level)
    if settings.environment is EnvironmentName.EMBEDDED:
        _migrate(settings)
    server.run(settings, host, port, with_worker=True)


@app.command()
def api(host: Host = "127.0.0.1", port: Port = 8321) -> None:
    """The API and dashboard alone."""
    from api import server

    settings = Settings()
    logging.configure(settings.log_level)
    server.run(settings, host, port, with_worker=False)


@app.command()
def worker(
    die_with_parent: Annotated[bool, typer.Option(hidden=True, help="For a worker that `serve` started.")] = False,
) -> None:
    """One worker, which runs one job at a time."""
    from elder_service import processes
    from worker.app import run_worker

    if die_with_parent:
        processes.die_with_parent()
    settings = Settings()
    logging.configure(settings.log_level)
    run_worker(settings)


@app.command()
def migrate(revision: Annotated[str, typer.Argument(help="Migration to go up to.")] = "head") -> None:
    """Bring the database to the migration that this version needs."""
    settings = Settings()
    logging.configure(settings.log_level)
    _migrate(settings, revision)
    typer.echo(f"The database is at migration {revision if revision != 'head' else schema.expected_head()}.")


@app.command()
def health() -> None:
    """Exit 0 if the worker of this machine is well, 1 if not; for container health checks."""
    from worker.app import alive_file

    path = alive_file(Settings())
    age = time.time() - path.stat().st_mtime if path.exists() else float("inf")
    if age > HEALTHY_SECONDS:
        typer.echo(f"No worker on this machine: {path} is {'missing' if age == float('inf') else 'old'}.", err=True)
        raise typer.Exit(1)


def _migrate(settings: Settings, revision: str = "head") -> None:
    engine = make_engine(settings.effective_database_url)
    try:
        schema.migrate(engine, revision)
    finally:
        engine.dispose()


def main() -> None:
    """Entry point; an error that was foreseen is one line and exit status 2."""
    try:
        app()
    except ElderError as error:
        typer.echo(f"error [{error.code}]: {error.message}", err=True)
        sys.exit(2)
