"""A job in a line: the row of the list, and the head of its own page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from api.dashboard import words
from api.dashboard.words import STAGE_NAMES, STATUS_NAMES, Moment, moment
from api.presentation import read_spec, stored_spec
from api.schemas import JobProgress, JobResult
from elder_core.registry import METHODS
from elder_core.reports import formatting
from elder_core.spec import Stage
from elder_service.db.models import JobRow
from elder_service.jobs.outlook import Outlook
from elder_service.jobs.states import ACTIVE, Status

LIVE_STATUSES = ACTIVE | {Status.QUEUED}


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


def job_summary(row: JobRow, outlook: Outlook | None, now: datetime) -> JobSummary:
    spec = read_spec(row)
    result = JobResult.model_validate(row.result) if row.result else None
    status = Status(row.status)
    return JobSummary(
        id=row.id,
        url=f"/jobs/{row.id}",
        model=spec.model.id if spec else _stored_model(row),
        method=METHODS[row.method].title if row.method in METHODS else row.method,
        target=words.target(spec) if spec else "–",
        status=status.value,
        status_name=STATUS_NAMES[status],
        note=_note(row, outlook, result, now),
        live=status in LIVE_STATUSES,
        progress=_progress(row) if status in ACTIVE else None,
        perplexity=(formatting.number(result.perplexity_before), formatting.number(result.perplexity_after))
        if result
        else None,
        perplexity_change=formatting.change(result.perplexity_after / result.perplexity_before) if result else "",
        created=moment(row.created_at, now),
    )


def _stored_model(row: JobRow) -> str:
    """The name of the model in a spec that this version cannot read, if it is where it should be."""
    model = stored_spec(row).get("model")
    return str(model["id"]) if isinstance(model, dict) and model.get("id") else row.id


def _note(row: JobRow, outlook: Outlook | None, result: JobResult | None, now: datetime) -> str:
    """The half sentence beside the state."""
    if row.status == Status.QUEUED:
        if row.available_at > now:
            return f"tries again in {words.elapsed((row.available_at - now).total_seconds())}"
        return _queue_note(outlook, now) if outlook else ""
    if row.status in ACTIVE and row.stage:
        return STAGE_NAMES[Stage(row.stage)]
    if result:
        return f"{result.layers_before} → {result.layers_after} layers"
    return str(row.error["message"]) if row.error else ""


def _queue_note(outlook: Outlook, now: datetime) -> str:
    if outlook.waiting_for:
        return outlook.waiting_for
    place = "next" if outlook.position == 1 else f"number {outlook.position} in the queue"
    if outlook.starts_at is None:
        return place
    wait = (outlook.starts_at - now).total_seconds()
    return f"{place}, starts in about {words.elapsed(wait)}" if wait > 0 else place


def _progress(row: JobRow) -> ProgressView:
    if not row.progress:
        return ProgressView(0, "Starting", "", ())
    known = JobProgress.model_validate(row.progress)
    return ProgressView(
        percent=round(100 * known.fraction),
        stage=STAGE_NAMES[known.stage],
        detail=f"step {known.step:,} of {known.total:,}" if known.total else "",
        metrics=words.metrics(known.metrics),
    )
