"""From rows to what a page shows: one frozen dataclass per page, and no logic left for the templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from urllib.parse import urlencode

from api.dashboard import details
from api.dashboard.forms import Blank, Errors
from api.dashboard.summaries import JobSummary, job_summary
from api.links import LinkSigner
from api.schemas import JobError, JobResult
from elder_core.reports.charts import Chart, charts
from elder_core.reports.summary import summary
from elder_core.spec import Report
from elder_service.db.models import ArtifactRow, JobEventRow, JobRow
from elder_service.jobs.outlook import Outlook
from elder_service.jobs.states import Status


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
class JobsPage:
    jobs: tuple[JobSummary, ...]
    filters: tuple[FilterLink, ...]
    filter: Filter
    newest_url: str | None
    older_url: str | None
    fragment_url: str


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
    stages: tuple[details.StageView, ...]
    events: tuple[details.EventView, ...]
    older_events: int
    error: details.ErrorView | None
    results: tuple[details.ResultView, ...]
    report: ReportView | None
    downloads: tuple[details.DownloadView, ...]
    settings: tuple[details.SettingsGroup, ...]
    unread_spec: str | None
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
    expected: dict[str, Outlook],
    now: datetime,
    *,
    chosen: Filter,
    after: str | None,
    has_more: bool,
) -> JobsPage:
    return JobsPage(
        jobs=tuple(job_summary(row, expected.get(row.id), now) for row in rows),
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


# One job ----------------------------------------------------------------------------------------------------------


def job_page(
    row: JobRow,
    outlook: Outlook | None,
    events: Sequence[JobEventRow],
    artifacts: Sequence[ArtifactRow],
    report: Report | None,
    links: LinkSigner,
    now: datetime,
) -> JobPage:
    return JobPage(
        job=job_summary(row, outlook, now),
        attempt=f"{row.attempt} of at most {row.max_attempts}" if row.attempt else "none yet",
        times=tuple(details.times(row, now)),
        cancellable=row.status in (Status.QUEUED, Status.RUNNING),
        stages=details.stages(row, now),
        events=tuple(details.event(event, now) for event in reversed(events)),
        older_events=row.last_event_seq - len(events),
        error=details.error(JobError.model_validate(row.error)) if row.error else None,
        results=details.results(JobResult.model_validate(row.result)) if row.result else (),
        report=_report(row, report) if report else None,
        downloads=tuple(details.download(artifact, links) for artifact in artifacts),
        settings=details.settings(row),
        unread_spec=details.unread_spec(row),
        metadata=tuple(sorted(row.job_metadata.items())),
    )


def _report(row: JobRow, report: Report) -> ReportView:
    return ReportView(summary(report), report.warnings, tuple(charts(report)), f"/v1/jobs/{row.id}/report.html")
