"""The only error handlers: whatever goes wrong is answered with application/problem+json (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from api.schemas import Problem, ProblemItem
from elder_core.errors import ElderError, InvalidInput, UnknownMethod, in_words
from elder_core.registry import METHODS, find_method
from elder_service import errors as service
from elder_service.db.engine import is_passing

PROBLEM_JSON = "application/problem+json"
REQUEST_ID = "X-Request-Id"

# The nearest class in an error's ancestry decides.
STATUS_OF: dict[type[ElderError], HTTPStatus] = {
    InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    service.JobNotFound: HTTPStatus.NOT_FOUND,
    service.ArtifactNotFound: HTTPStatus.NOT_FOUND,
    service.ReportNotReady: HTTPStatus.CONFLICT,
    service.LinkInvalid: HTTPStatus.FORBIDDEN,
    service.LinkExpired: HTTPStatus.FORBIDDEN,
    service.IdempotencyMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    service.InvalidCursor: HTTPStatus.UNPROCESSABLE_ENTITY,
    service.StorageFailed: HTTPStatus.SERVICE_UNAVAILABLE,
}

# Errors of HTTP itself; the names in http.HTTPStatus change with the version of Python.
HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "content_too_large", 416: "range_not_satisfiable"}

# FastAPI's, where reading the body fails for another reason than its syntax.
UNREAD_BODY = (400, "There was an error parsing the body")

_log = logging.getLogger(__name__)


def http_status(error: type[ElderError]) -> HTTPStatus:
    return next((STATUS_OF[kind] for kind in error.__mro__ if kind in STATUS_OF), HTTPStatus.INTERNAL_SERVER_ERROR)


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    errors: Sequence[ProblemItem] = (),
    headers: dict[str, str] | None = None,
    extensions: dict[str, Any] | None = None,
) -> JSONResponse:
    """`extensions` are further members of the body, as RFC 9457 allows."""
    body = Problem(
        type=f"urn:elder:error:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        request_id=request.state.request_id,
        errors=list(errors),
    )
    content = {**body.model_dump(), **(extensions or {})}
    return JSONResponse(content, status_code=status, media_type=PROBLEM_JSON, headers=headers)


def _elder_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ElderError)
    items = [ProblemItem(loc=list(error.loc), code=error.code, message=error.message)] if error.loc else []
    return problem(request, http_status(type(error)), error.code, error.message, items)


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    items = problem_items(error.errors())
    code = items[0].code if len(items) == 1 and items[0].code == UnknownMethod.code else "invalid_request"
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return problem(request, HTTPStatus.BAD_REQUEST, "invalid_json", items[0].message, items)
    detail = "; ".join(f"{'.'.join(map(str, item.loc)) or 'body'}: {item.message}" for item in items[:3])
    return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, code, detail, items)


def problem_items(errors: Sequence[Any]) -> list[ProblemItem]:
    """pydantic's errors with `loc` as the caller wrote it: no `body` in front, no tag of a union inside, no `[key]`."""
    return [_problem_item(error) for error in errors]


def _problem_item(error: dict[str, Any]) -> ProblemItem:
    loc = list(error["loc"])
    if loc and loc[0] in {"body", "query", "path", "header"}:
        loc = loc[1:]
    if error["type"] == "union_tag_invalid" and loc == ["method"]:
        try:
            find_method(error["ctx"]["tag"])
        except UnknownMethod as unknown:
            return ProblemItem(loc=list(unknown.loc), code=unknown.code, message=unknown.message)
    if len(loc) > 1 and loc[0] == "method" and loc[1] in METHODS:
        loc = [loc[0], *loc[2:]]
    if loc and loc[-1] == "[key]":
        loc.pop()
    if not loc and isinstance(error["input"], bytes):
        unread = "The body was not read as JSON; send it with the header Content-Type: application/json"
        return ProblemItem(loc=loc, code=error["type"], message=unread)
    return ProblemItem(loc=loc, code=error["type"], message=in_words(error))


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if (error.status_code, error.detail) == UNREAD_BODY:
        unread = (
            "The body cannot be read as JSON; send UTF-8, not nested too deeply, with no number of thousands of digits."
        )
        return problem(request, error.status_code, "invalid_json", unread)
    code = HTTP_CODES.get(error.status_code, "http_error")
    return problem(request, error.status_code, code, str(error.detail), headers=dict(error.headers or {}))


def _database_down(request: Request, error: Exception) -> JSONResponse:
    _log.error("Database unavailable: %s", error)
    return problem(
        request,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "database_unavailable",
        "The database does not answer; try again in a few seconds.",
        headers={"Retry-After": "5"},
    )


def _database_error(request: Request, error: Exception) -> JSONResponse:
    """A connection that broke has several names; what the database refuses is a fault of ours."""
    assert isinstance(error, SQLAlchemyError)
    return _database_down(request, error) if is_passing(error) else _unexpected(request, error)


def not_ready(request: Request, detail: str, checks: dict[str, str]) -> JSONResponse:
    return problem(request, HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", detail, extensions={"checks": checks})


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("Unexpected error, request %s", request.state.request_id, exc_info=error)
    return problem(
        request,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        service.InternalError.code,
        f"A fault in the service. Its log tells more under request {request.state.request_id}.",
        headers={REQUEST_ID: request.state.request_id},  # this answer is sent outside of RequestContext
    )


def install(app: FastAPI) -> None:
    handlers: dict[type[Exception], Callable[[Request, Exception], JSONResponse | Awaitable[JSONResponse]]] = {
        ElderError: _elder_error,
        RequestValidationError: _validation_error,
        HTTPException: _http_error,
        SQLAlchemyError: _database_error,
        Exception: _unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
