"""One way to submit a job, for the API and for the dashboard's form."""

from __future__ import annotations

import logging
from dataclasses import replace

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from api.dependencies import Services
from api.schemas import JobCreate
from elder_core.spec import JobSpec
from elder_service import queue
from elder_service.db.models import DEFAULT_OWNER, JobRow
from elder_service.jobs import service, validation
from elder_service.jobs.hardware import Needs, estimated_memory

_log = logging.getLogger(__name__)


def submit(
    services: Services, body: JobCreate, idempotency_key: str | None, owner: str = DEFAULT_OWNER
) -> tuple[JobRow, bool]:
    """Check, store, commit, and only then hint. Returns the job's row and whether it is new.

    A broker that is down does not matter: workers look for jobs by themselves as well.

    Raises:
        ElderError: the job is refused, or the key came with another body before.
    """
    submission = _submission(services, body, idempotency_key, owner)
    if (known := _replayed(services, submission)) is not None:
        return known, False
    validation.check(submission.spec, services.settings.sources, services.hub)
    row, created = _store(services, replace(submission, needs=_needs(body, submission.spec, services)))
    if created and not queue.send_hint(services.celery):
        _note_lost_hint(services, row.id)
    return row, created


def _submission(services: Services, body: JobCreate, idempotency_key: str | None, owner: str) -> service.Submission:
    """What the caller asked for, not yet checked, and without an estimate of what it needs."""
    return service.Submission(
        spec=JobSpec.model_validate(body.model_dump(include=set(JobSpec.model_fields))),
        max_attempts=services.settings.max_attempts,
        priority=body.priority,
        max_runtime_seconds=body.max_runtime_seconds,
        max_queue_seconds=body.max_queue_seconds,
        metadata=body.metadata,
        idempotency_key=idempotency_key,
        owner=owner,
        stated_needs=Needs(body.needs.device, body.needs.memory_bytes),
        hint_follows=True,
    )


def _replayed(services: Services, submission: service.Submission) -> JobRow | None:
    """The job of an earlier use of the same key, whatever has become of its model since.

    A transaction of its own: a look at the hub must hold no connection to the database.
    """
    if submission.idempotency_key is None:
        return None
    with services.sessions.begin() as session:
        return service.replayed(session, submission)


def _needs(body: JobCreate, spec: JobSpec, services: Services) -> Needs:
    estimate = estimated_memory(spec, services.settings.sources)
    return Needs(body.needs.device, body.needs.memory_bytes or estimate)


def _note_lost_hint(services: Services, job_id: str) -> None:
    """Let the workers send another; at best effort, since the job is stored and its caller must be told so."""
    try:
        with services.sessions.begin() as session:
            service.hint_lost(session, job_id)
    except SQLAlchemyError as error:
        _log.warning("%s: could not note that its hint was lost: %s", job_id, error)


def _store(services: Services, submission: service.Submission) -> tuple[JobRow, bool]:
    try:
        with services.sessions.begin() as session:
            return service.submit(session, submission)
    except IntegrityError:
        # The same key was being used at the same moment and has won: this time it is found.
        with services.sessions.begin() as session:
            return service.submit(session, submission)
