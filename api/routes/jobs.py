"""Jobs: submit, list, look at, cancel."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response, status
from fastapi.exceptions import RequestValidationError
from pydantic import AwareDatetime, Field

from api import schemas, submission
from api.dependencies import ServicesDep, SessionDep, base_url
from api.presentation import present_job, present_jobs
from api.routes.problems import problems
from elder_service.db.models import DEFAULT_OWNER
from elder_service.jobs import repository, service
from elder_service.jobs.repository import JobFilter
from elder_service.jobs.states import Status

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

# A time near the ends of the calendar has no counterpart in UTC.
Time = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(9999, 1, 1, tzinfo=UTC))]
JobId = Annotated[str, Path(max_length=40, examples=["job_01jd9z5x1rq8v7k2m3n4p5q6r7"])]


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    responses={
        200: {"model": schemas.Job, "description": "The job that this Idempotency-Key created before."},
        201: {"headers": {"Location": {"schema": {"type": "string"}}}},
        **problems(400, 413, 422, 503),
    },
)
def create_job(
    body: schemas.JobCreate,
    request: Request,
    response: Response,
    services: ServicesDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern=r"^[\x20-\x7e]+$",
            description="The same key and body from the same owner within 24 hours make one job.",
        ),
    ] = None,
    owner: Annotated[
        str,
        Header(
            alias="X-Elder-Owner",
            pattern=r"^[A-Za-z0-9_.@+-]{1,64}$",
            description="Whose job it is, as the proxy that asks who is there says; a limit of jobs that run at the "
            "same time is per owner.",
        ),
    ] = DEFAULT_OWNER,
) -> schemas.Job:
    """Queue a pruning job."""
    row, created = submission.submit(services, body, idempotency_key, owner)
    with services.sessions.begin() as session:
        job = present_job(session, row, base_url(request), services.settings.max_running_per_owner)
    response.headers["Location"] = job.urls.self
    if not created:
        response.status_code = status.HTTP_200_OK
    return job


@router.get("", responses=problems(422, 503))
def list_jobs(
    request: Request,
    session: SessionDep,
    services: ServicesDep,
    after: Annotated[str | None, Query(description="Continue below this job: the last_id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    status: Annotated[list[Status] | None, Query(description="Only these; may be given several times.")] = None,
    method: Annotated[str | None, Query()] = None,
    created_after: Annotated[Time | None, Query(description="A time with its offset from UTC.")] = None,
) -> schemas.JobList:
    """Jobs from newest to oldest. `metadata[key]=value` in the query selects by metadata."""
    where = JobFilter(tuple(status or ()), method, created_after, _metadata(request))
    rows, has_more = repository.list_jobs(session, where, after=after, limit=limit)
    jobs = present_jobs(session, rows, base_url(request), services.settings.max_running_per_owner)
    return schemas.JobList(
        data=jobs,
        has_more=has_more,
        first_id=jobs[0].id if jobs else None,
        last_id=jobs[-1].id if jobs else None,
    )


def _metadata(request: Request) -> dict[str, str]:
    found = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    wrong = [key for key in found if not re.fullmatch(schemas.METADATA_KEY, key)]
    if wrong:
        raise _query_error(f"metadata[{wrong[0]}]", "A key has up to 64 letters, digits and `_.:/-`")
    if len(found) > schemas.MOST_METADATA:
        raise _query_error("metadata", f"At most {schemas.MOST_METADATA} keys can be asked for")
    return found


def _query_error(name: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "metadata", "loc": ("query", name), "msg": message, "input": None}])


@router.get("/{job_id}", responses=problems(404, 503))
def get_job(job_id: JobId, request: Request, session: SessionDep, services: ServicesDep) -> schemas.Job:
    """One job as it is now."""
    row = repository.get(session, job_id)
    return present_job(session, row, base_url(request), services.settings.max_running_per_owner)


@router.post("/{job_id}/cancel", responses=problems(404, 413, 503))
def cancel_job(job_id: JobId, request: Request, session: SessionDep, services: ServicesDep) -> schemas.Job:
    """Cancel a queued job, or ask a running one to stop. An ended job is returned as it is."""
    row = service.cancel(session, job_id)
    return present_job(session, row, base_url(request), services.settings.max_running_per_owner)
