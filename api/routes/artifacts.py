"""What a job produced: its report and its files."""

from __future__ import annotations

import mimetypes
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from sqlalchemy.orm import Session

from api import schemas
from api.dependencies import Services, ServicesDep, SessionDep, base_url
from api.presentation import present_artifact
from api.routes.jobs import JobId
from api.routes.problems import problems
from elder_core.spec import Report
from elder_service.db.models import ArtifactRow
from elder_service.errors import ArtifactNotFound, ReportNotReady
from elder_service.jobs import repository

router = APIRouter(prefix="/v1/jobs", tags=["results"])

CHUNK_BYTES = 1 << 20  # three times the speed of the default of 64 KiB


class DownloadResponse(FileResponse):
    chunk_size = CHUNK_BYTES


@router.get("/{job_id}/report", response_model=Report, responses=problems(404, 409, 503))
def get_report(job_id: JobId, services: ServicesDep) -> Response:
    """The evaluation report."""
    return Response(_report(services, job_id, "report.json"), media_type="application/json")


@router.get("/{job_id}/report.html", response_class=HTMLResponse, responses=problems(404, 409, 503))
def get_report_html(job_id: JobId, services: ServicesDep) -> Response:
    """The evaluation report as one page that needs no network."""
    return HTMLResponse(_report(services, job_id, "report.html"))


def _report(services: Services, job_id: str, name: str) -> bytes:
    with services.sessions.begin() as session:
        job = repository.get(session, job_id)
        row = repository.artifact(session, job_id, name)
    if row is None:
        raise ReportNotReady(f"The job is {job.status}; its report is there once it has succeeded.")
    return services.storage.read(row.storage_key)


@router.get("/{job_id}/artifacts", responses=problems(404, 503))
def list_artifacts(job_id: JobId, request: Request, services: ServicesDep, session: SessionDep) -> schemas.ArtifactList:
    """The files of the job, each with a download link that expires. Empty until the job has succeeded."""
    repository.get(session, job_id)
    rows = repository.artifacts(session, job_id)
    return schemas.ArtifactList(data=[present_artifact(row, services.links, base_url(request)) for row in rows])


@router.get(
    "/{job_id}/artifacts/{name:path}",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        206: {"description": "The part asked for by Range."},
        **problems(403, 404, 416, 422, 503),
    },
)
@router.head("/{job_id}/artifacts/{name:path}", include_in_schema=False)
def download(
    job_id: JobId,
    name: str,
    services: ServicesDep,
    expires: Annotated[int, Query()],
    signature: Annotated[str, Query(min_length=64, max_length=64)],
) -> Response:
    """One file, by a link from the list. Range and If-Range work."""
    services.links.check(job_id, name, expires, signature)
    with services.sessions.begin() as session:
        row = _artifact(session, job_id, name)
    return DownloadResponse(
        services.storage.path(row.storage_key),
        media_type=mimetypes.guess_type(row.name)[0] or "application/octet-stream",
        filename=PurePosixPath(row.name).name,
        headers={"ETag": f'"{row.sha256}"', "Cache-Control": "private, immutable"},
    )


def _artifact(session: Session, job_id: str, name: str) -> ArtifactRow:
    row = repository.artifact(session, job_id, name)
    if row is None:
        raise ArtifactNotFound(f"The job {job_id} has no artefact {name!r}.")
    return row
