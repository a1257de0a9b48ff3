"""Around every page: its security headers, and errors as pages for people."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api.dashboard.rendering import render
from api.errors import http_status
from elder_core.errors import ElderError, in_words

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # "no-referrer" would make the Origin of our own forms "null"
    "Referrer-Policy": "same-origin",
}

_log = logging.getLogger(__name__)


class PageRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                response = await handler(request)
            except (ElderError, HTTPException, RequestValidationError, OperationalError) as error:
                response = _error_page(error)
            for name, value in HEADERS.items():
                response.headers[name] = value
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return handle


def _error_page(error: Exception) -> Response:
    status, message = _described(error)
    return render("error.html", status_code=status, status=status, message=message)


def _described(error: Exception) -> tuple[HTTPStatus, str]:
    if isinstance(error, ElderError):
        return http_status(type(error)), error.message
    if isinstance(error, HTTPException):
        return HTTPStatus(error.status_code), str(error.detail)
    if isinstance(error, RequestValidationError):
        wrong = error.errors()[0]
        return HTTPStatus.UNPROCESSABLE_ENTITY, f"{wrong['loc'][-1]}: {in_words(wrong)}."
    _log.error("Database unavailable: %s", error)
    return HTTPStatus.SERVICE_UNAVAILABLE, "The database does not answer; try again in a few seconds."
