"""From rows to the JSON that callers see."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from api import schemas
from api.links import LinkSigner
from api.storable import readable
from elder_core.spec import JobSpec
from elder_service.db.engine import database_now
from elder_service.db.models import ArtifactRow, JobEventRow, JobRow
from elder_service.jobs.outlook import Outlook, needs_of, outlooks
from elder_service.jobs.service import PRIORITIES
from elder_service.jobs.states import Status

_PRIORITY_NAMES = {value: name for name, value in PRIORITIES.items()}


def present_jobs(
    session: Session, rows: Sequence[JobRow], base_url: str, max_running_per_owner: int | None
) -> list[schemas.Job]:
    now = database_now(session)
    expected = outlooks(session, rows, now, max_running_per_owner)
    return [_job(row, expected.get(row.id), now, base_url) for row in rows]


def present_job(session: Session, row: JobRow, base_url: str, max_running_per_owner: int | None) -> schemas.Job:
    return present_jobs(session, [row], base_url, max_running_per_owner)[0]


def _job(row: JobRow, outlook: Outlook | None, now: datetime, base_url: str) -> schemas.Job:
    waited_until = row.started_at or row.finished_at or now
    return schemas.Job(
        id=row.id,
        status=Status(row.status),
        cancel_requested=row.cancel_requested_at is not None,
        stage=row.stage,
        stage_history=[schemas.StageTimes.model_validate(entry) for entry in row.stage_history],
        progress=schemas.JobProgress.model_validate(row.progress) if row.progress else None,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        owner=row.owner,
        needs=schemas.JobNeeds.model_validate(needs_of(row)),
        queue_position=outlook.position if outlook else None,
        estimated_start_at=outlook.starts_at if outlook else None,
        waiting_for=outlook.waiting_for if outlook else None,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        queued_seconds=_seconds(row.created_at, waited_until),
        running_seconds=_seconds(row.started_at, row.finished_at or now) if row.started_at else None,
        priority=priority_name(row.priority),
        max_runtime_seconds=row.max_runtime_seconds,
        max_queue_seconds=row.max_queue_seconds,
        spec=read_spec(row) or stored_spec(row),
        metadata=readable(row.job_metadata),
        result=schemas.JobResult.model_validate(row.result) if row.result else None,
        error=schemas.JobError.model_validate(readable(row.error)) if row.error else None,
        urls=_urls(row, base_url),
    )


def read_spec(row: JobRow) -> JobSpec | None:
    """None if this version cannot read it: another one, with other parameters or ranges, has stored it."""
    try:
        return JobSpec.model_validate(stored_spec(row))
    except ValidationError:
        return None


def stored_spec(row: JobRow) -> dict[str, Any]:
    spec: dict[str, Any] = readable(row.spec)
    return spec


def priority_name(priority: int) -> str:
    return _PRIORITY_NAMES.get(priority, str(priority))


def _seconds(start: datetime, end: datetime) -> float:
    return max(0.0, round((end - start).total_seconds(), 3))


def _urls(row: JobRow, base_url: str) -> schemas.JobUrls:
    job = f"{base_url}/v1/jobs/{row.id}"
    done = row.status == Status.SUCCEEDED
    return schemas.JobUrls(
        self=job,
        page=f"{base_url}/jobs/{row.id}",
        cancel=f"{job}/cancel",
        events=f"{job}/events",
        report=f"{job}/report" if done else None,
        report_html=f"{job}/report.html" if done else None,
        artifacts=f"{job}/artifacts",
    )


def present_event(row: JobEventRow) -> schemas.JobEvent:
    return schemas.JobEvent(seq=row.seq, type=row.type, at=row.at, data=readable(row.data))


def present_artifact(row: ArtifactRow, links: LinkSigner, base_url: str) -> schemas.Artifact:
    url, expires_at = links.sign(base_url, row.job_id, row.name)
    return schemas.Artifact(
        id=row.id,
        name=row.name,
        kind=row.kind,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        download_url=url,
        expires_at=expires_at,
    )
