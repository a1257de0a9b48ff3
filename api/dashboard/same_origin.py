"""Forms are taken from our own pages only: another site must not submit one in a visitor's name (CSRF)."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from api.dependencies import get_services


def require_same_origin(request: Request) -> None:
    """Raise 403 unless the browser says that a page of ours sent the form.

    Sec-Fetch-Site where there is one (HTTPS and loopback), Origin elsewhere; programs that send neither have the API.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        if site in ("same-origin", "none"):
            return
    elif urlsplit(request.headers.get("origin", "")).netloc in _own_hosts(request):
        return
    raise HTTPException(
        HTTPStatus.FORBIDDEN, "This form was not sent from a page of this service. Programs use POST /v1/jobs."
    )


def _own_hosts(request: Request) -> set[str]:
    public = urlsplit(get_services(request).settings.public_url or "").netloc
    return {request.headers.get("host", ""), public} - {""}


SameOrigin = Depends(require_same_origin)
