"""The API's requests and answers, without any input or output: what both clients send and how they read it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote

import httpx2
import pydantic

from elder_client.errors import (
    Conflict,
    ElderApiError,
    InvalidRequest,
    NotAuthorised,
    NotFound,
    ServerFault,
    TooManyRequests,
    UnexpectedAnswer,
)
from elder_client.types import ArtifactList, Job, JobEventList, JobList, MethodList, Model, Problem, Report

T = TypeVar("T")
M = TypeVar("M", bound=Model)

RETRY_STATUSES = frozenset({429, 502, 503, 504})
EVENT_STREAM = "text/event-stream"
PAGE_SIZE = 100


@dataclass(frozen=True)
class Request:
    """One HTTP request; `url` is a path on the server or, for downloads, absolute."""

    method: str
    url: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request that may be sent again, the statuses on which it is, and how its answer is read."""

    request: Request
    read: Callable[[httpx2.Response], T]
    retry_statuses: frozenset[int] = RETRY_STATUSES


class SubmitOptions(TypedDict, total=False):
    """What a job may be given beside its model; what is left out is the server's default.

    Exactly one of `ratio`, `layers_to_remove`, `layers` and `target` says what to remove; a target is one limit, as in
    `{"max_perplexity_increase": 0.1}`. `method` is `{"name": …}` with that method's parameters; `calibration`,
    `evaluation`, `output` and `needs` are as in the API's schema. `idempotency_key`: two submissions with the same key
    are one job; by default each call has a key of its own, which its retries share.
    """

    revision: str
    ratio: float
    layers_to_remove: int
    layers: Sequence[int]
    target: Mapping[str, float]
    method: Mapping[str, Any]
    calibration: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    output: Mapping[str, Any]
    seed: int
    priority: str
    max_runtime_seconds: int
    max_queue_seconds: int
    needs: Mapping[str, Any]
    metadata: Mapping[str, str]
    idempotency_key: str


class ListOptions(TypedDict, total=False):
    """Which jobs to list: those of this status, method, age and metadata."""

    status: str
    method: str
    created_after: datetime
    metadata: Mapping[str, str]
    page_size: int


def submit_job(model: str, options: SubmitOptions) -> Call[Job]:
    fields: dict[str, Any] = dict(options)
    reference = {"id": model} | ({"revision": fields.pop("revision")} if "revision" in fields else {})
    headers = {"Idempotency-Key": fields.pop("idempotency_key", None) or uuid.uuid4().hex}
    request = Request("POST", "/v1/jobs", json={"model": reference} | fields, headers=headers)
    # 409: the first try of this very request is still in flight
    return Call(request, _reader(Job), RETRY_STATUSES | {409})


def get_job(job_id: str) -> Call[Job]:
    return Call(Request("GET", _job(job_id)), _reader(Job))


def cancel_job(job_id: str) -> Call[Job]:
    """May be sent again: cancelling an ended job changes nothing."""
    return Call(Request("POST", _job(job_id, "/cancel")), _reader(Job))


def list_jobs(options: ListOptions, *, after: str | None) -> Call[JobList]:
    """One page, newest first; `after` is the last id of the page before."""
    fields: dict[str, Any] = dict(options)
    params = {"limit": fields.pop("page_size", PAGE_SIZE)} | ({"after": after} if after else {})
    params |= {f"metadata[{key}]": value for key, value in fields.pop("metadata", {}).items()}
    if "created_after" in fields:
        fields["created_after"] = fields["created_after"].isoformat()
    return Call(Request("GET", "/v1/jobs", params=params | fields), _reader(JobList))


def list_events(job_id: str, *, after: int, limit: int = PAGE_SIZE) -> Call[JobEventList]:
    params = {"after": after, "limit": limit}
    headers = {"Accept": "application/json"}
    return Call(Request("GET", _job(job_id, "/events"), params=params, headers=headers), _reader(JobEventList))


def stream_events(job_id: str, *, after: int) -> Request:
    """The event stream, from the event after number `after`."""
    headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
    if after:
        headers["Last-Event-ID"] = str(after)
    return Request("GET", _job(job_id, "/events"), headers=headers)


def get_report(job_id: str) -> Call[Report]:
    return Call(Request("GET", _job(job_id, "/report")), _reader(Report))


def get_report_html(job_id: str) -> Call[str]:
    return Call(
        Request("GET", _job(job_id, "/report.html"), headers={"Accept": "text/html"}), lambda answer: answer.text
    )


def list_artifacts(job_id: str) -> Call[ArtifactList]:
    return Call(Request("GET", _job(job_id, "/artifacts")), _reader(ArtifactList))


def list_methods() -> Call[MethodList]:
    return Call(Request("GET", "/v1/methods"), _reader(MethodList))


def download(url: str, *, offset: int) -> Request:
    """The bytes of an artefact from `offset` on, as they are on disk: never compressed on the way."""
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    return Request("GET", url, headers=headers)


def error_of(answer: httpx2.Response) -> ElderApiError:
    """The error that an answer of status 400 or above stands for; its body must have been read."""
    kind = _error_class(answer.status_code)
    try:
        problem = Problem.model_validate_json(answer.content)
    except pydantic.ValidationError:  # from a proxy, or not this service
        return kind(
            status=answer.status_code,
            code=f"http_{answer.status_code}",
            detail=f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}.".replace(" .", "."),
            request_id=answer.headers.get("x-request-id"),
        )
    return kind(
        status=answer.status_code,
        code=problem.code,
        detail=problem.detail,
        request_id=problem.request_id or answer.headers.get("x-request-id"),
        errors=problem.errors,
    )


def parse(kind: type[M], content: bytes | str, source: str) -> M:
    """`content`, which came from `source`, as `kind`.

    Raises:
        UnexpectedAnswer: it is no JSON of that shape.
    """
    try:
        return kind.model_validate_json(content)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnexpectedAnswer(
            f"{source} answered something else than a {kind.__name__} ({where + ': ' if where else ''}{first['msg']}). "
            "Is an elder server listening there, of a version that fits this client?"
        ) from error


def _reader(kind: type[M]) -> Callable[[httpx2.Response], M]:
    return lambda answer: parse(kind, answer.content, str(answer.request.url))


def _error_class(status: int) -> type[ElderApiError]:
    known = {401: NotAuthorised, 403: NotAuthorised, 404: NotFound, 409: Conflict, 429: TooManyRequests}
    if status >= 500:
        return ServerFault
    return known.get(status, InvalidRequest)


def _job(job_id: str, suffix: str = "") -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}{suffix}"
