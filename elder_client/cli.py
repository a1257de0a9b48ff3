"""`elder`: the service from the command line.

Exit status: 0 done; 1 the job failed, was cancelled or expired, or a file is not on disk as it should be; 2 bad usage
or a request that the server refused; 3 no server, or one that does not work; 130 interrupted (the job goes on).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from typer.core import TyperGroup

from elder_client import display
from elder_client.assignments import parse_layers, parse_metadata, parse_settings
from elder_client.client import DEFAULT_SERVER, ElderClient
from elder_client.download import DownloadProgress
from elder_client.errors import (
    DownloadError,
    ElderApiError,
    ElderClientError,
    JobUnsuccessful,
    ServerFault,
    ServerUnreachable,
    UnexpectedAnswer,
    WaitTimeout,
)
from elder_client.flows import check_succeeded
from elder_client.protocol import SubmitOptions
from elder_client.types import Job

EXIT_UNSUCCESSFUL = 1
EXIT_REFUSED = 2
EXIT_NO_SERVER = 3
EXIT_INTERRUPTED = 130
PIPE_WIDTH = 200

connect: Callable[[str], ElderClient] = ElderClient
"""How a command gets its client; tests put another in its place."""


class _Group(TyperGroup):
    """Turns the errors of every command into one line on stderr and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ElderClientError as error:
            _print_error(error)
            raise typer.Exit(exit_status(error)) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            typer.echo(f"error [file]: {error.filename or 'file'}: {error.strerror or error}", err=True)
            raise typer.Exit(EXIT_UNSUCCESSFUL) from error
        except KeyboardInterrupt:
            typer.echo("interrupted; what runs on the server goes on", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None


def exit_status(error: ElderClientError) -> int:
    """The exit status for an error, as the module's docstring lists them."""
    if isinstance(error, JobUnsuccessful | DownloadError | WaitTimeout):
        return EXIT_UNSUCCESSFUL
    if isinstance(error, ServerUnreachable | ServerFault | UnexpectedAnswer):
        return EXIT_NO_SERVER
    return EXIT_REFUSED


def _print_error(error: ElderClientError) -> None:
    typer.echo(f"error [{error.code}]: {error.message}", err=True)
    for item in error.errors if isinstance(error, ElderApiError) else ():
        if item.message not in error.message:
            typer.echo(f"  {'.'.join(map(str, item.loc)) or 'request'}: {item.message}", err=True)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make language models shorter: submit pruning jobs and fetch their results.",
    epilog="Exit status: 0 done; 1 job or download unsuccessful; 2 bad usage or refused; 3 no working server.",
)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, job_….")]
Server = Annotated[str, typer.Option(envvar="ELDER_SERVER", help="Address of the server.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
def submit(
    model: Annotated[str, typer.Argument(help="builtin:NAME, local:NAME or a hub id OWNER/NAME.")],
    ratio: Annotated[float | None, typer.Option(help="Share of the layers to remove, such as 0.25.")] = None,
    layers: Annotated[str | None, typer.Option(help="Exactly these layers, from 0, such as 3,7.")] = None,
    layers_to_remove: Annotated[int | None, typer.Option(help="How many layers to remove.")] = None,
    max_perplexity_increase: Annotated[
        float | None, typer.Option(help="As many as cost no more perplexity, before training: 0.1 allows 10 % more.")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="As few as make the weights this small, in bytes.")] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="As few as can make decoding this much faster: 1.3.")
    ] = None,
    method: Annotated[str, typer.Option(help="See `elder methods`.")] = "elder",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="gate_steps=20 of the method, or calibration.samples=64."),
    ] = None,
    calibration: Annotated[str | None, typer.Option(metavar="SOURCE", help="Text to learn on.")] = None,
    evaluation: Annotated[str | None, typer.Option(metavar="SOURCE", help="Text to measure on.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    priority: Annotated[str | None, typer.Option(help="low, normal or high.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with the job.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key never makes a second job.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait, and show what happens.")] = False,
    as_json: Json = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Queue a pruning job."""
    grouped = parse_settings(settings or [])
    limits = {
        "max_perplexity_increase": max_perplexity_increase,
        "max_bytes": max_bytes,
        "min_speedup": min_speedup,
    }
    options: dict[str, Any] = {
        "ratio": ratio,
        "layers": parse_layers(layers) if layers is not None else None,
        "layers_to_remove": layers_to_remove,
        "target": {name: limit for name, limit in limits.items() if limit is not None} or None,
        "method": {"name": method, **grouped.pop("method", {})},
        "calibration": _section(grouped.pop("calibration", {}), calibration),
        "evaluation": _section(grouped.pop("evaluation", {}), evaluation),
        "seed": seed,
        "revision": revision,
        "priority": priority,
        "metadata": parse_metadata(metadata or []) or None,
        "idempotency_key": idempotency_key,
        **grouped,
    }
    given: SubmitOptions = {name: value for name, value in options.items() if value is not None}  # type: ignore[assignment]
    with connect(server) as client:
        job = client.submit_job(model, **given)
        if not as_json:
            typer.echo(job.id)
        if follow and not as_json:
            job = _follow(client, job.id)
        elif wait or follow:
            job = client.wait_for_job(job.id, check=False)
        _finish(job, as_json=as_json, ended=wait or follow)


def _section(fields: dict[str, Any], source: str | None) -> dict[str, Any] | None:
    return (fields if source is None else fields | {"source": source}) or None


@app.command("list")
def list_(
    status: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    method: Annotated[str | None, typer.Option(help="Only jobs of this method.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with this.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, from the newest.")] = 20,
    as_json: Json = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """List jobs, newest first."""
    where: dict[str, Any] = {"status": status, "method": method, "metadata": parse_metadata(metadata or [])}
    given = {name: value for name, value in where.items() if value}
    with connect(server) as client:
        jobs = list(itertools.islice(client.list_jobs(**given, page_size=min(limit, 100)), limit))
    if as_json:
        _print_json([_document(job) for job in jobs])
    else:
        _console().print(display.jobs_table(jobs) if jobs else "No jobs.")


@app.command()
def show(job: JobId, as_json: Json = False, server: Server = DEFAULT_SERVER) -> None:
    """Show one job as it is now."""
    with connect(server) as client:
        found = client.get_job(job)
    _print_job(found, as_json=as_json)


@app.command()
def follow(job: JobId, as_json: Json = False, server: Server = DEFAULT_SERVER) -> None:
    """Show what happens to a job until it ends; exit 1 unless it succeeds."""
    with connect(server) as client:
        ended = client.wait_for_job(job, check=False) if as_json else _follow(client, job)
    _finish(ended, as_json=as_json, ended=True)


@app.command()
def cancel(job: JobId, as_json: Json = False, server: Server = DEFAULT_SERVER) -> None:
    """Ask for a job's end; an ended job stays as it is."""
    with connect(server) as client:
        found = client.cancel_job(job)
    if as_json:
        _print_json(_document(found))
    else:
        typer.echo(f"{found.id} is {found.status}")


@app.command()
def report(
    job: JobId,
    html: Annotated[bool, typer.Option("--html", help="Print the page for people instead.")] = False,
    as_json: Json = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show a job's evaluation report: before and after."""
    if html and as_json:
        raise typer.BadParameter("Give --html or --json, not both.")
    with connect(server) as client:
        if html:
            typer.echo(client.report_html(job))
            return
        found = client.report(job)
    if as_json:
        _print_json(_document(found))
    else:
        _console().print(display.report_table(found))


@app.command()
def download(
    job: JobId,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made where it does not exist.")],
    as_json: Json = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Fetch a job's files and verify them; run again, it goes on where it was broken off."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with connect(server) as client, Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def on_progress(now: DownloadProgress) -> None:
            bar.update(task, description=now.name, completed=now.done_bytes, total=now.total_bytes)

        files = client.download(job, folder, on_progress=on_progress)
        if not files:
            found = client.get_job(job)
            raise DownloadError(f"Job {job} is {found.status}; it has no files.")
    if as_json:
        _print_json([str(file) for file in files])
    else:
        typer.echo(f"{len(files)} files in {folder}, verified")


@app.command()
def methods(as_json: Json = False, server: Server = DEFAULT_SERVER) -> None:
    """List the pruning methods."""
    with connect(server) as client:
        found = client.methods()
    if as_json:
        _print_json([_document(method) for method in found])
    else:
        _console().print(display.methods_table(found))


def _follow(client: ElderClient, job_id: str) -> Job:
    with display.Follower(_console()) as follower:
        for event in client.stream_events(job_id):
            follower.show(event)
    return client.wait_for_job(job_id, check=False)


def _finish(job: Job, *, as_json: bool, ended: bool) -> None:
    """Print the job where there is more to say than its id, and fail if it ended without a result."""
    if ended or as_json:
        _print_job(job, as_json=as_json)
    if ended:
        check_succeeded(job)


def _print_job(job: Job, *, as_json: bool) -> None:
    if as_json:
        _print_json(_document(job))
    else:
        _console().print(display.job_table(job))


def _console() -> Console:
    """Standard output; where it is no terminal, tables are as wide as they need to be."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def _document(model: BaseModel) -> Any:
    return model.model_dump(mode="json")


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point."""
    app()
