"""A job's log, as a list or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, status
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api import schemas
from api.dependencies import Services, ServicesDep
from api.presentation import present_event
from api.routes.jobs import JobId
from api.routes.problems import problems
from elder_service.jobs import events, repository
from elder_service.jobs.states import Status

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

EVENT_STREAM = "text/event-stream"
POLL_SECONDS = 0.5
KEEPALIVE_SECONDS = 15
MOST_EVENTS = 2**31 - 1  # what the column holds


@router.get(
    "/{job_id}/events",
    response_model=schemas.JobEventList,
    responses={
        200: {
            "description": "The list, or with `Accept: text/event-stream` a stream that ends with the job. `id` of an "
            "event is its seq; a client that comes back with Last-Event-ID misses none.",
            "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        },
        204: {"description": "To a request for a stream: the job has ended, and there is no further event."},
        **problems(404, 422, 503),
    },
)
async def list_events(
    job_id: JobId,
    request: Request,
    services: ServicesDep,
    after: Annotated[int, Query(ge=0, le=MOST_EVENTS, description="Only events with a larger seq.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Of the list; a stream has no limit.")] = 1000,
    last_event_id: Annotated[int | None, Header(ge=0, le=MOST_EVENTS)] = None,
) -> Response:
    """What happened to the job, from the first event on."""
    first = max(after, last_event_id or 0)
    page = await run_sync(_page, services, job_id, first, limit + 1)  # answers 404 before a stream begins
    if EVENT_STREAM in request.headers.get("accept", ""):
        if page.last:
            return Response(status_code=status.HTTP_204_NO_CONTENT)  # on which a browser's EventSource stays away
        return StreamingResponse(
            _stream(services, job_id, first), media_type=EVENT_STREAM, headers={"Cache-Control": "no-store"}
        )
    listed = schemas.JobEventList(data=page.events[:limit], has_more=len(page.events) > limit)
    return JSONResponse(listed.model_dump(mode="json"))


@dataclass(frozen=True)
class _Page:
    """`last`: there is nothing in it, and nothing will come."""

    events: list[schemas.JobEvent]
    last: bool


def _page(services: Services, job_id: str, after: int, limit: int) -> _Page:
    with services.sessions.begin() as session:
        # the row first: if it has ended by then, its last event is among those that are read next
        ended = Status(repository.get(session, job_id).status).ended
        events = [present_event(row) for row in repository.events_after(session, job_id, after, limit)]
        return _Page(events, last=ended and not events)


async def _stream(services: Services, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Every event once, in order, until the job has ended. Holds no database connection between looks."""
    silent = 0.0
    while True:
        page = await run_sync(_page, services, job_id, after, repository.EVENT_PAGE_LIMIT)
        for event in page.events:
            yield format_sse_event(data_str=event.model_dump_json(), event=event.type, id=str(event.seq))
            after = event.seq
            if event.type in events.ENDING:
                return
        if page.last:
            return
        if not page.events and silent >= KEEPALIVE_SECONDS:
            yield KEEPALIVE_COMMENT
            silent = 0.0
        silent = 0.0 if page.events else silent + POLL_SECONDS
        await anyio.sleep(POLL_SECONDS)
