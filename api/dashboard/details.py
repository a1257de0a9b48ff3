"""The parts of a job's page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from api.dashboard import words
from api.dashboard.fields import Control, Field
from api.dashboard.forms import blank
from api.dashboard.summaries import LIVE_STATUSES
from api.dashboard.words import STAGE_NAMES, Moment, moment
from api.links import LinkSigner
from api.presentation import priority_name, read_spec, stored_spec
from api.schemas import JobError, JobResult, StageTimes
from elder_core.registry import METHODS
from elder_core.reports import formatting
from elder_core.spec import JobSpec, Stage
from elder_service.db.models import ArtifactRow, JobEventRow, JobRow
from elder_service.jobs.states import Status

METADATA = "metadata"  # shown by itself


@dataclass(frozen=True)
class StageView:
    """`state` is done, current, waiting, or stopped: where a job that failed or was cancelled came to."""

    name: str
    state: str
    duration: str


@dataclass(frozen=True)
class EventView:
    seq: int
    title: str
    text: str
    at: Moment


@dataclass(frozen=True)
class ErrorView:
    code: str
    message: str
    stage: str | None
    facts: tuple[tuple[str, str], ...]
    log_tail: str


@dataclass(frozen=True)
class DownloadView:
    name: str
    url: str
    size: str
    sha256: str


@dataclass(frozen=True)
class SettingView:
    label: str
    value: str
    changed: bool


@dataclass(frozen=True)
class SettingsGroup:
    title: str
    settings: tuple[SettingView, ...]


@dataclass(frozen=True)
class ResultView:
    label: str
    value: str
    detail: str


def times(row: JobRow, now: datetime) -> Iterable[tuple[str, str]]:
    waited_until = row.started_at or row.finished_at or now
    yield "Waited", words.elapsed((waited_until - row.created_at).total_seconds())
    if row.started_at:
        label = "Ran" if row.finished_at else "Running for"
        yield label, words.elapsed(((row.finished_at or now) - row.started_at).total_seconds())


def stages(row: JobRow, now: datetime) -> tuple[StageView, ...]:
    """The stages entered, with their times, and after them, while the job may go on, those to come."""
    entered = [StageTimes.model_validate(entry) for entry in row.stage_history]
    seen = [_stage(times, now) for times in entered]
    if row.status in LIVE_STATUSES:
        order = list(STAGE_NAMES)
        coming = order[order.index(entered[-1].stage) + 1 :] if entered else order
        return (*seen, *(StageView(STAGE_NAMES[stage], "waiting", "") for stage in coming))
    if seen and row.status != Status.SUCCEEDED:
        seen[-1] = replace(seen[-1], state="stopped")
    return tuple(seen)


def _stage(times: StageTimes, now: datetime) -> StageView:
    seconds = ((times.finished_at or now) - times.started_at).total_seconds()
    return StageView(STAGE_NAMES[times.stage], "done" if times.finished_at else "current", words.elapsed(seconds))


def event(event: JobEventRow, now: datetime) -> EventView:
    title = event.type.removeprefix("job.").capitalize()
    return EventView(event.seq, title, _event_text(event.data), moment(event.at, now))


def _event_text(data: dict[str, Any]) -> str:
    """What an event's data says, in a line: the known keys in words, the rest as they are."""
    if "error" in data:
        return str(data["error"]["message"])
    parts = []
    if "stage" in data:
        parts.append(STAGE_NAMES[Stage(data["stage"])])
    if data.get("total"):
        parts.append(f"step {data['step']:,} of {data['total']:,}")
    parts += [f"{name} {value}" for name, value in words.metrics(data.get("metrics", {}))]
    parts += [f"{key} {data[key]}" for key in ("method", "attempt", "worker", "reason") if key in data]
    if "perplexity_after" in data:
        before, after = data["perplexity_before"], data["perplexity_after"]
        parts.append(f"perplexity {formatting.number(before)} → {formatting.number(after)}")
    return " · ".join(parts)


def error(error: JobError) -> ErrorView:
    details = dict(error.details)
    tail = details.pop("log_tail", "")
    return ErrorView(
        code=error.code,
        message=error.message,
        stage=STAGE_NAMES[error.stage] if error.stage else None,
        facts=tuple((words.metric_name(name).capitalize(), str(value)) for name, value in details.items()),
        log_tail=tail if isinstance(tail, str) else "\n".join(map(str, tail)),
    )


def results(result: JobResult) -> tuple[ResultView, ...]:
    """The large figures of a job that succeeded."""

    def compared(label: str, before: float, after: float, text: Any) -> ResultView:
        return ResultView(label, formatting.change(after / before), f"{text(before)} → {text(after)}")

    figures = [
        ResultView(
            "Layers",
            f"{result.layers_before} → {result.layers_after}",
            f"removed: {formatting.listing(result.removed_layers)}",
        ),
        compared("Perplexity", result.perplexity_before, result.perplexity_after, formatting.number),
        compared("Parameters", result.parameters_before, result.parameters_after, formatting.count),
    ]
    if result.decode_speedup is not None:
        figures.append(ResultView("Writing speed", f"×{result.decode_speedup:.2f}", "of the original's"))
    return tuple(figures)


def download(row: ArtifactRow, links: LinkSigner) -> DownloadView:
    url, _ = links.sign("", row.job_id, row.name)
    return DownloadView(row.name, url, formatting.size(row.size_bytes), row.sha256)


def unread_spec(row: JobRow) -> str | None:
    """The spec as it is stored, where another version of the service stored what this one cannot read."""
    return None if read_spec(row) else json.dumps(stored_spec(row), indent=2, ensure_ascii=False)


def settings(row: JobRow) -> tuple[SettingsGroup, ...]:
    """The job's limits and, where it can be read, the spec, with the labels of the form."""
    form = blank()
    sections, elsewhere = [form.job], {METADATA, *JobSpec.model_fields}
    if read_spec(row):
        elsewhere = {METADATA}
        method = form.method(row.method)
        chosen = [method.section] if method else []
        sections = [form.model, *chosen, form.calibration, form.evaluation, form.job, form.output]
    values = {
        **stored_spec(row),
        "priority": priority_name(row.priority),
        "max_runtime_seconds": row.max_runtime_seconds,
        "max_queue_seconds": row.max_queue_seconds,
        "needs": {"device": row.needs_device, "memory_bytes": row.needs_memory_bytes},
    }
    usual = _usual(row.method)
    return tuple(
        SettingsGroup(
            section.title,
            tuple(_setting(field, values, usual) for field in section.fields if field.name not in elsewhere),
        )
        for section in sections
        if section.fields
    )


def _usual(method: str) -> dict[str, Any]:
    """The parameters that a method has where none are given: one may be worked out, and is null as declared."""
    entry = METHODS.get(method)
    return {"method": entry.parameters().model_dump(mode="json")} if entry else {}


def _setting(field: Field, values: dict[str, Any], usual: dict[str, Any]) -> SettingView:
    value = _at(values, field.path)
    changed = _typed(value) not in (field.default, _typed(_at(usual, field.path))) and not field.required
    return SettingView(field.label, _setting_text(field, value), changed)


def _at(values: Any, path: Iterable[str]) -> Any:
    """What stands at `path`; None if nothing does."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _setting_text(field: Field, value: Any) -> str:
    if field.control is Control.SWITCH:
        return "yes" if value else "no"
    if value is None or value == []:
        return "not set"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _typed(value: Any) -> str:
    """As it would be typed into the form."""
    if isinstance(value, bool):
        return "on" if value else ""
    return "" if value is None or value == [] else str(value)
