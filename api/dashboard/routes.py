"""The pages: parse, call, render."""

from __future__ import annotations

import logging
import re
import uuid
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from api import submission
from api.dashboard import forms
from api.dashboard.assets import assets
from api.dashboard.forms import Errors
from api.dashboard.page_route import PageRoute
from api.dashboard.rendering import render
from api.dashboard.same_origin import SameOrigin
from api.dashboard.views import Filter, FormPage, JobPage, JobsPage, job_page, jobs_page
from api.dependencies import Services, ServicesDep, SessionDep
from api.schemas import JobCreate
from elder_core import inspection
from elder_core.errors import ElderError
from elder_core.spec import Report
from elder_service.db.engine import database_now
from elder_service.db.models import ArtifactRow
from elder_service.errors import IdempotencyMismatch
from elder_service.jobs import repository, service
from elder_service.jobs.outlook import outlooks
from elder_service.jobs.repository import JobFilter

PAGE_SIZE = 20
EVENTS_SHOWN = 50
KEY_FIELD = "idempotency_key"
KEY = re.compile(r"[\w-]{1,255}", re.ASCII)

_log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False, route_class=PageRoute)

JobId = Annotated[str, Path(max_length=40)]
FilterQuery = Annotated[Filter, Query(alias="status")]
AfterQuery = Annotated[str | None, Query(max_length=40)]


@router.get("/")
def list_jobs(
    session: SessionDep, services: ServicesDep, chosen: FilterQuery = Filter.ALL, after: AfterQuery = None
) -> HTMLResponse:
    return render("jobs.html", page=_jobs_page(session, services, chosen, after))


@router.get("/fragments/jobs")
def list_fragment(
    session: SessionDep, services: ServicesDep, chosen: FilterQuery = Filter.ALL, after: AfterQuery = None
) -> HTMLResponse:
    """What the list polls for: the same partial that the page holds."""
    return render("_jobs.html", page=_jobs_page(session, services, chosen, after))


def _jobs_page(session: Session, services: Services, chosen: Filter, after: str | None) -> JobsPage:
    rows, has_more = repository.list_jobs(session, JobFilter(chosen.statuses), after=after, limit=PAGE_SIZE)
    now = database_now(session)
    expected = outlooks(session, rows, now, services.settings.max_running_per_owner)
    return jobs_page(rows, expected, now, chosen=chosen, after=after, has_more=has_more)


@router.get("/jobs/new")
def new_job(services: ServicesDep) -> HTMLResponse:
    return _form(services, forms.defaults(), Errors({}), _new_key())


async def _typed(request: Request) -> dict[str, str]:
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}


@router.post("/jobs/new", dependencies=[SameOrigin])
def create_job(services: ServicesDep, typed: Annotated[dict[str, str], Depends(_typed)]) -> Response:
    """Submit as POST /v1/jobs does; the form's hidden key makes one job of a double click."""
    key = typed.get(KEY_FIELD, "")
    if not KEY.fullmatch(key):
        key = _new_key()
    try:
        body = JobCreate.model_validate(forms.body_of(typed))
        row, _ = submission.submit(services, body, key)
    except IdempotencyMismatch:
        errors = Errors({}, ("This form has made a job already. Send it again to make another.",))
        return _form(services, typed, errors, _new_key())
    except (ValidationError, ElderError) as error:
        return _form(services, typed, forms.errors_of(error, typed), key)
    return RedirectResponse(f"/jobs/{row.id}", status_code=HTTPStatus.SEE_OTHER)


def _form(services: Services, values: dict[str, str], errors: Errors, key: str) -> HTMLResponse:
    sources = services.settings.sources
    page = FormPage(
        form=forms.blank(),
        values=values,
        errors=errors,
        models=tuple(inspection.available_models(sources)),
        texts=tuple(inspection.available_texts(sources)),
        idempotency_key=key,
    )
    return render("new.html", page=page, status_code=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK)


def _new_key() -> str:
    return f"form-{uuid.uuid4().hex}"


@router.get("/jobs/{job_id}")
def show_job(job_id: JobId, services: ServicesDep) -> HTMLResponse:
    return render("job.html", page=_job_page(services, job_id))


@router.get("/fragments/jobs/{job_id}")
def job_fragment(job_id: JobId, services: ServicesDep) -> HTMLResponse:
    """What a job's page polls for until the job has ended: the same partial that the page holds."""
    return render("_job.html", page=_job_page(services, job_id))


def _job_page(services: Services, job_id: str) -> JobPage:
    with services.sessions.begin() as session:
        row = repository.get(session, job_id)
        events = repository.events_after(session, job_id, row.last_event_seq - EVENTS_SHOWN)
        artifacts = repository.artifacts(session, job_id)
        now = database_now(session)
        outlook = outlooks(session, [row], now, services.settings.max_running_per_owner).get(job_id)
    report = _report(services, artifacts)
    return job_page(row, outlook, events, artifacts, report, services.links, now)


def _report(services: Services, artifacts: list[ArtifactRow]) -> Report | None:
    """None without one, and for one that another version wrote so that this one cannot read it: a download it is."""
    row = next((artifact for artifact in artifacts if artifact.name == "report.json"), None)
    if row is None:
        return None
    try:
        return Report.model_validate_json(services.storage.read(row.storage_key))
    except ValidationError as error:
        _log.warning("The report of %s cannot be read: %d errors.", row.job_id, error.error_count())
        return None


@router.post("/jobs/{job_id}/cancel", dependencies=[SameOrigin])
def cancel_job(job_id: JobId, session: SessionDep) -> Response:
    service.cancel(session, job_id)
    return RedirectResponse(f"/jobs/{job_id}", status_code=HTTPStatus.SEE_OTHER)


@router.get("/static/{name}")
def static_file(name: str, v: str = "") -> Response:
    """A file of the pages. Its address holds its version, so it never changes there."""
    asset = assets().get(name)
    if asset is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no file {name!r}.")
    kept = "public, max-age=31536000, immutable" if v == asset.version else "no-cache"
    return FileResponse(asset.path, headers={"Cache-Control": kept})
