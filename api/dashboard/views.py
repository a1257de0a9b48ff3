"""From rows to what a page shows: one frozen dataclass per page, and no logic left for the templates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from urllib.parse import urlencode

from api.dashboard import words
from api.dashboard.fields import Control, Field
from api.dashboard.forms import Blank, Errors, blank
from api.dashboard.words import STAGE_NAMES, STATUS_NAMES, Moment, moment
from api.links import LinkSigner
from api.schemas import JobError, JobProgress, JobResult, StageTimes
from elder_core.registry import METHODS
from elder_core.reports import formatting
from elder_core.reports.charts import Chart, charts
from elder_core.reports.summary import summary
from elder_core.spec import JobSpec, Report, Stage
from elder_service.db.models import ArtifactRow, JobEventRow, JobRow
from elder_service.jobs.states import ACTIVE, Status

LIVE_STATUSES = ACTIVE | {Status.QUEUED}


class Filter(StrEnum):
    """What the list can be narrowed to."""

    ALL = "all"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def statuses(self) -> tuple[Status, ...]:
        if self is Filter.ALL:
            return ()
        return (Status.RUNNING, Status.CANCELLING) if self is Filter.RUNNING else (Status(self.value),)


@dataclass(frozen=True)
class FilterLink:
    label: str
    url: str
    current: bool


@dataclass(frozen=True)
class ProgressView:
    """`percent` is of the whole job; `detail` says where in its stage it is."""

    percent: int
    stage: str
    detail: str
    metrics: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class JobSummary:
    """A job in a line: the row of the list, and the head of its own page."""

    id: str
    url: str
    model: str
    method: str
    target: str
    status: str
    status_name: str
    note: str
    live: bool
    progress: ProgressView | None
    perplexity: tuple[str, str] | None
    perplexity_change: str
    created: Moment


@dataclass(frozen=True)
class JobsPage:
    jobs: tuple[JobSummary, ...]
    filters: tuple[FilterLink, ...]
    filter: Filter
    newest_url: str | None
    older_url: str | None
    fragment_url: str


@dataclass(frozen=True)
class StageView:
    """`state` is done, current, or waiting."""

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


@dataclass(frozen=True)
class ReportView:
    """What the job's page shows of a report."""

    sentence: str
    warnings: tuple[str, ...]
    charts: tuple[Chart, ...]
    html_url: str


@dataclass(frozen=True)
class JobPage:
    job: JobSummary
    attempt: str
    times: tuple[tuple[str, str], ...]
    cancellable: bool
    stages: tuple[StageView, ...]
    events: tuple[EventView, ...]
    older_events: int
    error: ErrorView | None
    results: tuple[ResultView, ...]
    report: ReportView | None
    downloads: tuple[DownloadView, ...]
    settings: tuple[SettingsGroup, ...]
    metadata: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FormPage:
    form: Blank
    values: dict[str, str]
    errors: Errors
    models: tuple[str, ...]
    texts: tuple[str, ...]
    idempotency_key: str


# The list ---------------------------------------------------------------------------------------------------------


def jobs_page(
    rows: Sequence[JobRow],
    positions: dict[str, int],
    now: datetime,
    *,
    chosen: Filter,
    after: str | None,
    has_more: bool,
) -> JobsPage:
    return JobsPage(
        jobs=tuple(job_summary(row, positions.get(row.id), now) for row in rows),
        filters=tuple(FilterLink(one.value.capitalize(), _list_url(one), one is chosen) for one in Filter),
        filter=chosen,
        newest_url=_list_url(chosen) if after else None,
        older_url=_list_url(chosen, rows[-1].id) if has_more else None,
        fragment_url=_list_url(chosen, after, path="/fragments/jobs"),
    )


def _list_url(chosen: Filter, after: str | None = None, path: str = "/") -> str:
    query = {"status": chosen.value} if chosen is not Filter.ALL else {}
    if after is not None:
        query["after"] = after
    return f"{path}?{urlencode(query)}" if query else path


def job_summary(row: JobRow, position: int | None, now: datetime) -> JobSummary:
    spec = JobSpec.model_validate(row.spec)
    result = JobResult.model_validate(row.result) if row.result else None
    status = Status(row.status)
    return JobSummary(
        id=row.id,
        url=f"/jobs/{row.id}",
        model=spec.model.id,
        method=METHODS[row.method].title if row.method in METHODS else row.method,
        target=words.target(spec),
        status=status.value,
        status_name=STATUS_NAMES[status],
        note=_note(row, position, result, now),
        live=status in LIVE_STATUSES,
        progress=_progress(row) if status in ACTIVE else None,
        perplexity=(formatting.number(result.perplexity_before), formatting.number(result.perplexity_after))
        if result
        else None,
        perplexity_change=formatting.change(result.perplexity_after / result.perplexity_before) if result else "",
        created=moment(row.created_at, now),
    )


def _note(row: JobRow, position: int | None, result: JobResult | None, now: datetime) -> str:
    """The half sentence beside the state."""
    if row.status == Status.QUEUED:
        if row.available_at > now:
            return f"tries again in {words.elapsed((row.available_at - now).total_seconds())}"
        return "next" if position == 1 else f"number {position} in the queue" if position else ""
    if row.status in ACTIVE and row.stage:
        return STAGE_NAMES[Stage(row.stage)]
    if result:
        return f"{result.layers_before} → {result.layers_after} layers"
    return str(row.error["message"]) if row.error else ""


def _progress(row: JobRow) -> ProgressView:
    if not row.progress:
        return ProgressView(0, "Starting", "", ())
    known = JobProgress.model_validate(row.progress)
    return ProgressView(
        percent=round(100 * known.fraction),
        stage=STAGE_NAMES[known.stage],
        detail=f"step {known.step:,} of {known.total:,}" if known.total else "",
        metrics=_metrics(known.metrics),
    )


def _metrics(metrics: dict[str, float]) -> tuple[tuple[str, str], ...]:
    return tuple((words.metric_name(name), formatting.number(value)) for name, value in metrics.items())


# One job ----------------------------------------------------------------------------------------------------------


def job_page(
    row: JobRow,
    position: int | None,
    events: Sequence[JobEventRow],
    artifacts: Sequence[ArtifactRow],
    report: Report | None,
    links: LinkSigner,
    now: datetime,
) -> JobPage:
    return JobPage(
        job=job_summary(row, position, now),
        attempt=f"{row.attempt} of at most {row.max_attempts}" if row.attempt else "none yet",
        times=tuple(_times(row, now)),
        cancellable=row.status in (Status.QUEUED, Status.RUNNING),
        stages=_stages(row, now),
        events=tuple(_event(event, now) for event in reversed(events)),
        older_events=row.last_event_seq - len(events),
        error=_error(JobError.model_validate(row.error)) if row.error else None,
        results=_results(JobResult.model_validate(row.result)) if row.result else (),
        report=_report(row, report) if report else None,
        downloads=tuple(_download(artifact, links) for artifact in artifacts),
        settings=_settings(row),
        metadata=tuple(sorted(row.job_metadata.items())),
    )


def _times(row: JobRow, now: datetime) -> Iterable[tuple[str, str]]:
    waited_until = row.started_at or row.finished_at or now
    yield "Waited", words.elapsed((waited_until - row.created_at).total_seconds())
    if row.started_at:
        label = "Ran" if row.finished_at else "Running for"
        yield label, words.elapsed(((row.finished_at or now) - row.started_at).total_seconds())


def _stages(row: JobRow, now: datetime) -> tuple[StageView, ...]:
    """The stages entered, with their times, and after them, while the job may go on, those to come."""
    entered = [StageTimes.model_validate(entry) for entry in row.stage_history]
    seen = tuple(_stage(times, now) for times in entered)
    if row.status not in LIVE_STATUSES:
        return seen
    known = {times.stage for times in entered}
    return (*seen, *(StageView(STAGE_NAMES[stage], "waiting", "") for stage in STAGE_NAMES if stage not in known))


def _stage(times: StageTimes, now: datetime) -> StageView:
    seconds = ((times.finished_at or now) - times.started_at).total_seconds()
    return StageView(STAGE_NAMES[times.stage], "done" if times.finished_at else "current", words.elapsed(seconds))


def _event(event: JobEventRow, now: datetime) -> EventView:
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
    parts += [f"{name} {value}" for name, value in _metrics(data.get("metrics", {}))]
    parts += [f"{key} {data[key]}" for key in ("method", "attempt", "worker", "reason") if key in data]
    if "perplexity_after" in data:
        before, after = data["perplexity_before"], data["perplexity_after"]
        parts.append(f"perplexity {formatting.number(before)} → {formatting.number(after)}")
    return " · ".join(parts)


def _error(error: JobError) -> ErrorView:
    details = dict(error.details)
    tail = details.pop("log_tail", "")
    return ErrorView(
        code=error.code,
        message=error.message,
        stage=STAGE_NAMES[error.stage] if error.stage else None,
        facts=tuple((words.metric_name(name).capitalize(), str(value)) for name, value in details.items()),
        log_tail=tail if isinstance(tail, str) else "\n".join(map(str, tail)),
    )


def _results(result: JobResult) -> tuple[ResultView, ...]:
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


def _report(row: JobRow, report: Report) -> ReportView:
    return ReportView(summary(report), report.warnings, tuple(charts(report)), f"/v1/jobs/{row.id}/report.html")


def _download(row: ArtifactRow, links: LinkSigner) -> DownloadView:
    url, _ = links.sign("", row.job_id, row.name)
    return DownloadView(row.name, url, formatting.size(row.size_bytes), row.sha256)


def _settings(row: JobRow) -> tuple[SettingsGroup, ...]:
    """The spec with the labels of the form."""
    form = blank()
    method = form.method(row.method)
    sections = (form.model, method.section if method else None, form.calibration, form.evaluation, form.output)
    groups = [
        SettingsGroup(section.title, tuple(_setting(field, row.spec) for field in section.fields))
        for section in sections
        if section is not None
    ]
    return tuple(groups)


def _setting(field: Field, spec: dict[str, Any]) -> SettingView:
    value: Any = spec
    for key in field.path:
        value = value.get(key) if isinstance(value, dict) else None
    return SettingView(field.label, _setting_text(field, value), changed=_typed(value) != field.default)


def _setting_text(field: Field, value: Any) -> str:
    if field.control is Control.SWITCH:
        return "yes" if value else "no"
    if value is None or value == []:
        return "not set"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _typed(value: Any) -> str:
    """As it would be typed into the form."""
    if isinstance(value, bool):
        return "on" if value else ""
    return "" if value is None or value == [] else str(value)
