"""Around every request: its id, a line in the log, and problem+json also for the errors that the framework answers."""

from __future__ import annotations

import logging
import time
from urllib.parse import quote

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import HTTP_CODES, PROBLEM_JSON, REQUEST_ID, problem
from elder_service.ids import new_id

_DETAILS = {
    413: "The request body is larger than ELDER_MAX_BODY_BYTES.",
    416: "The range lies outside the file.",
}

_log = logging.getLogger(__name__)


class RequestContext:
    """Give each request an id, in `request.state.request_id` and in the answer's X-Request-Id, and log how it ended.

    A body that is too large and a range that cannot be had are answered in plain text below this; they leave here as
    problems.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 500  # of an exception that leaves here; its answer is made outside
        replaced = False

        async def send_on(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start":
                replaced = message["status"] in _DETAILS and not _is_problem(message)
                if replaced:
                    await _problem(scope, message["status"])(scope, receive, send_with_id)
                    return
            if not replaced:
                await send_with_id(message)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            _log_request(scope, status, time.perf_counter() - started)


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    """One line. The path is quoted, so that nobody writes lines of their own; the query may hold a signature."""
    path = quote(scope["path"])
    _log.info("%s %s %d %.3f s %s", scope["method"], path, status, seconds, scope["state"]["request_id"])


def _is_problem(message: Message) -> bool:
    return Headers(raw=message["headers"]).get("content-type", "") == PROBLEM_JSON


def _problem(scope: Scope, status: int) -> ASGIApp:
    return problem(Request(scope), status, HTTP_CODES[status], _DETAILS[status])
