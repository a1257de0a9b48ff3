"""Performing the effects of a flow, blocking or with asyncio. At most one response is open at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Self

import httpx2

from elder_client.flows import Effect, Open, ReadAll, ReadChunk, ReadEvent, Run, Send, Sleep
from elder_client.protocol import Request

STREAM_TIMEOUT = httpx2.Timeout(60, connect=5)  # between two chunks; an idle event stream carries comments


class SyncRunner:
    """Performs effects on an `httpx2.Client`; leaving its `with` block closes what is open."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self._response: httpx2.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._events: Iterator[httpx2.ServerSentEvent] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def step(self, run: Run[Any], effect: Effect) -> None:
        try:
            outcome = self._perform(effect)
        except httpx2.RequestError as error:
            run.fail(error)
        else:
            run.answer(outcome)

    def _perform(self, effect: Effect) -> object:
        match effect:
            case Send(request):
                return self._send(request)
            case Open(request):
                return self._open(request)
            case ReadAll():
                return self._response.read() if self._response else b""
            case ReadChunk():
                return next(self._chunks, None)
            case ReadEvent():
                return next(self._events, None)
            case Sleep(seconds):
                time.sleep(seconds)
                return None

    def _send(self, request: Request) -> httpx2.Response:
        built = self._http.build_request(**_build_options(request))
        return self._http.send(built, follow_redirects=_follow_redirects(request))

    def _open(self, request: Request) -> httpx2.Response:
        self._close()
        built = self._http.build_request(**_build_options(request), timeout=STREAM_TIMEOUT)
        response = self._http.send(built, stream=True, follow_redirects=_follow_redirects(request))
        self._response = response
        self._chunks = (
            response.iter_bytes()
        )  # as they arrive: a chunk size would hold bytes back, and lose them with the connection
        self._events = iter(httpx2.EventSource(response))
        return response

    def _close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


class AsyncRunner:
    """`SyncRunner` on an `httpx2.AsyncClient`."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._response: httpx2.Response | None = None
        self._chunks: AsyncIterator[bytes]
        self._events: AsyncIterator[httpx2.ServerSentEvent]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def step(self, run: Run[Any], effect: Effect) -> None:
        try:
            outcome = await self._perform(effect)
        except httpx2.RequestError as error:
            run.fail(error)
        else:
            run.answer(outcome)

    async def _perform(self, effect: Effect) -> object:
        match effect:
            case Send(request):
                return await self._send(request)
            case Open(request):
                return await self._open(request)
            case ReadAll():
                return await self._response.aread() if self._response else b""
            case ReadChunk():
                return await anext(self._chunks, None)
            case ReadEvent():
                return await anext(self._events, None)
            case Sleep(seconds):
                await asyncio.sleep(seconds)
                return None

    async def _send(self, request: Request) -> httpx2.Response:
        built = self._http.build_request(**_build_options(request))
        return await self._http.send(built, follow_redirects=_follow_redirects(request))

    async def _open(self, request: Request) -> httpx2.Response:
        await self._close()
        built = self._http.build_request(**_build_options(request), timeout=STREAM_TIMEOUT)
        response = await self._http.send(built, stream=True, follow_redirects=_follow_redirects(request))
        self._response = response
        self._chunks = response.aiter_bytes()
        self._events = aiter(httpx2.EventSource(response))
        return response

    async def _close(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None


def _build_options(request: Request) -> dict[str, Any]:
    return {
        "method": request.method,
        "url": request.url,
        "params": request.params or None,  # an empty mapping would strip the query of a signed link
        "json": request.json,
        "headers": request.headers,
    }


def _follow_redirects(request: Request) -> bool:
    return request.method == "GET"  # a redirected POST would become a GET
