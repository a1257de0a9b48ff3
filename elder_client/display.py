"""What people see on a terminal: tables, and a job followed live."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from elder_client.types import EventType, Job, JobEvent, MethodInfo, Report

METRICS_SHOWN = 3
LINE_EVERY = 0.05  # of the whole job, where there is no bar


class Follower:
    """Shows events as they come: a live bar below the lines on a terminal, lines alone elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_line_at = 0.0
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[metrics]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("queued", total=1.0, metrics="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, event: JobEvent) -> None:
        if event.type == EventType.PROGRESS:
            self._show_progress(event)
            return
        self._line(event.at, describe(event))
        if event.type in {EventType.CREATED, EventType.REQUEUED}:
            self._next_line_at = 0.0
            self._bar.update(self._task, description="queued", completed=0, metrics="")
        elif event.type == EventType.STAGE:
            self._bar.update(self._task, description=str(event.data.get("stage", "")), metrics="")

    def _show_progress(self, event: JobEvent) -> None:
        stage, metrics = str(event.data.get("stage", "")), format_metrics(event.data.get("metrics", {}))
        fraction = float(event.data.get("fraction", 0))
        self._bar.update(self._task, description=stage, completed=fraction, metrics=metrics)
        if not self._console.is_terminal and fraction >= self._next_line_at:
            self._next_line_at = fraction + LINE_EVERY
            step = f" {event.data.get('step', 0)}/{total}" if (total := event.data.get("total")) else ""
            self._line(event.at, f"{stage}{step}, {fraction:.0%} of the job  {metrics}".rstrip())

    def _line(self, at: datetime, text: str) -> None:
        self._console.print(f"[dim]{at.astimezone():%H:%M:%S}[/dim] {escape(text)}", highlight=False, soft_wrap=True)


def describe(event: JobEvent) -> str:
    """An event in a few words."""
    data = event.data
    match event.type:
        case EventType.CREATED:
            return "queued"
        case EventType.STARTED:
            return f"started, attempt {data.get('attempt', 1)}"
        case EventType.STAGE:
            return str(data.get("stage", ""))
        case EventType.REQUEUED:
            return f"queued again: {data.get('reason', 'its worker gave it back')}"
        case EventType.FAILED:
            error = data.get("error") or {}
            return f"failed [{error.get('code', 'unknown')}]: {error.get('message', '')}".rstrip()
        case _:
            return str(event.type).removeprefix("job.")


def format_metrics(metrics: Mapping[str, Any]) -> str:
    shown = list(metrics.items())[:METRICS_SHOWN]
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown)


def jobs_table(jobs: Iterable[Job]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("Job", no_wrap=True)  # to be copied whole
    for heading in ("State", "Stage", "Model", "Method", "Age", "Perplexity"):
        table.add_column(heading)
    for job in jobs:
        table.add_row(
            job.id,
            str(job.status),
            _stage(job),
            escape(str(job.spec.get("model", {}).get("id", ""))),
            str(job.spec.get("method", {}).get("name", "")),
            format_seconds((datetime.now(UTC) - job.created_at).total_seconds()),
            f"{job.result.perplexity_before:.4g} → {job.result.perplexity_after:.4g}" if job.result else "",
        )
    return table


def job_table(job: Job) -> Table:
    """One job, a line for each thing that is known."""
    rows: dict[str, str | None] = {
        "job": job.id,
        "state": f"{job.status}{' (cancel requested)' if job.cancel_requested and not job.ended else ''}",
        "stage": _stage(job),
        "place in queue": str(job.queue_position) if job.queue_position is not None else None,
        "waits for": job.waiting_for,
        "starts at about": job.estimated_start_at.astimezone().strftime("%H:%M:%S") if job.estimated_start_at else None,
        "attempt": f"{job.attempt} of at most {job.max_attempts}",
        "model": str(job.spec.get("model", {}).get("id", "")),
        "method": str(job.spec.get("method", {}).get("name", "")),
        "waited": format_seconds(job.queued_seconds),
        "ran": format_seconds(job.running_seconds) if job.running_seconds is not None else None,
        "metadata": " ".join(f"{key}={value}" for key, value in job.metadata.items()),
        **_result_rows(job),
        "error": f"[{job.error.code}] {job.error.message}" if job.error else None,
        "its last log lines": str(job.error.details.get("log_tail", "")) if job.error else None,
        "page": job.urls.page,
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        if value:
            table.add_row(f"[dim]{name}", escape(value))
    return table


def _result_rows(job: Job) -> dict[str, str | None]:
    result = job.result
    if result is None:
        return {}
    removed = ", ".join(map(str, result.removed_layers))
    return {
        "layers": f"{result.layers_before} → {result.layers_after}, removed {removed}",
        "parameters": f"{result.parameters_before:,} → {result.parameters_after:,}",
        "perplexity": f"{result.perplexity_before:.4g} → {result.perplexity_after:.4g}",
        "decoding": f"{result.decode_speedup:.2f} × as fast" if result.decode_speedup is not None else None,
    }


def report_table(report: Report) -> Table:
    """The measurements before and after, each with its ratio."""
    table = Table("", "Before", "After", "Ratio", box=None, pad_edge=False)
    before, after = report.evaluation.before, report.evaluation.after
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if old is None or new is None:
            continue
        ratio = report.evaluation.ratios.get(name)
        table.add_row(
            name.replace("_", " "), format_number(old), format_number(new), f"{ratio:.3f}" if ratio is not None else ""
        )
    return table


def methods_table(methods: Iterable[MethodInfo]) -> Table:
    table = Table("Method", "Summary", "Published", box=None, pad_edge=False)
    for method in methods:
        table.add_row(method.name, escape(method.summary), method.source)
    return table


def format_number(value: float) -> str:
    """Four significant digits, or a whole number with its thousands parted."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min` or `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def _stage(job: Job) -> str:
    if job.stage is None or job.ended:
        return ""
    if job.progress is None:
        return job.stage
    return f"{job.stage} {job.progress.step}/{job.progress.total} ({job.progress.fraction:.0%} of the job)"
