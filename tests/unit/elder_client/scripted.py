"""A server that answers from a script, and one way to call both clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from elder_client.client import AsyncElderClient, ElderClient
from elder_client.retry import RetryPolicy

SERVER = "http://elder.test"
JOB = "job_1"
URLS = ("self", "page", "cancel", "events", "report", "report_html", "artifacts")
AT = "2026-01-02T03:04:05Z"
EVENT_STREAM = {"content-type": "text/event-stream"}

Answer = httpx2.Response | Exception | Callable[[httpx2.Request], httpx2.Response]


@dataclass
class Script:
    """Answers in order; running out of answers fails the test. `requests` are those received."""

    answers: list[Answer]
    requests: list[httpx2.Request] = field(default_factory=list)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        assert self.answers, f"an unexpected request: {request.method} {request.url}"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            if isinstance(answer, httpx2.RequestError):
                answer.request = request
            raise answer
        return answer if isinstance(answer, httpx2.Response) else answer(request)

    @property
    def paths(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.requests]


class Pieces(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body in these pieces; an exception among them breaks the connection there."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


@dataclass(frozen=True)
class Caller:
    """Calls a method of one of the two clients by name and returns its result; what it iterates comes as a list."""

    kind: str

    def __call__(self, script: Script, name: str, *args: Any, attempts: int = 4, **kwargs: Any) -> Any:
        policy = RetryPolicy(attempts=attempts, first_delay=0)
        options: dict[str, Any] = {"retry": policy, "outage": policy, "transport": httpx2.MockTransport(script)}
        if self.kind == "async":
            return asyncio.run(_call_async(options, name, args, kwargs))
        with ElderClient(SERVER, **options) as client:
            result = getattr(client, name)(*args, **kwargs)
            return list(result) if isinstance(result, Iterator) else result


async def _call_async(options: dict[str, Any], name: str, args: Any, kwargs: Any) -> Any:
    async with AsyncElderClient(SERVER, **options) as client:
        result = getattr(client, name)(*args, **kwargs)
        return [item async for item in result] if isinstance(result, AsyncIterator) else await result


# Answers ---------------------------------------------------------------------------------------------------------


def job(status: str = "queued", job_id: str = JOB, **fields: Any) -> dict[str, Any]:
    return {
        "object": "job",
        "id": job_id,
        "status": status,
        "attempt": 1,
        "max_attempts": 3,
        "created_at": AT,
        "queued_seconds": 1.5,
        "spec": {"model": {"id": "builtin:tiny"}, "method": {"name": "elder"}, "ratio": 0.25},
        "urls": dict.fromkeys(
            ("self", "page", "cancel", "events", "report", "report_html", "artifacts"), f"{SERVER}/v1/jobs/{job_id}"
        ),
    } | fields


RESULT = {
    "removed_layers": [5, 6],
    "layers_before": 8,
    "layers_after": 6,
    "parameters_before": 8000,
    "parameters_after": 6000,
    "perplexity_before": 10.0,
    "perplexity_after": 11.0,
    "decode_speedup": 1.3,
}


def measurement(perplexity: float) -> dict[str, Any]:
    return {"layers": 8, "parameters": 8000, "bytes_on_disk": 16_000, "perplexity": perplexity, "bits_per_byte": 1.5}


REPORT = {
    "schema_version": 1,
    "created_at": AT,
    "removed_layers": [5, 6],
    "layers": [{"index": 0, "weight": 1.0, "removed": False, "new_index": 0}],
    "evaluation": {
        "source": "builtin:manuals-test",
        "tokens": 1000,
        "before": measurement(10.0),
        "after": measurement(11.0),
        "ratios": {"perplexity": 1.1},
    },
    "weight_label": "a field that this client does not know",
}


def answer(body: Any, status: int = 200) -> httpx2.Response:
    return httpx2.Response(status, json=body)


def refusal(status: int, code: str, detail: str = "No.", **fields: Any) -> httpx2.Response:
    body = {"type": f"urn:elder:error:{code}", "title": "x", "status": status, "detail": detail, "code": code}
    headers = {"content-type": "application/problem+json"}
    return httpx2.Response(status, headers=headers, content=json.dumps(body | {"request_id": "req_1"} | fields))


def event(seq: int, kind: str = "job.progress", **data: Any) -> dict[str, Any]:
    return {"object": "job.event", "seq": seq, "type": kind, "at": AT, "data": data}


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(
        f"event: {item['type']}\ndata: {json.dumps(item)}\nid: {item['seq']}\n\n".encode() for item in events
    )


def stream(*pieces: bytes | Exception) -> httpx2.Response:
    return httpx2.Response(200, headers=EVENT_STREAM, stream=Pieces(*pieces))


def event_list(*events: dict[str, Any], has_more: bool = False) -> httpx2.Response:
    return answer({"object": "list", "data": events, "has_more": has_more})


def artifact(name: str, content: bytes, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"art_{name}",
        "name": name,
        "kind": "model",
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "download_url": f"{SERVER}/files/{name}?expires=1&signature=s",
        "expires_at": AT,
    } | fields


def artifact_list(*artifacts: dict[str, Any]) -> httpx2.Response:
    return answer({"object": "list", "data": artifacts})


def part(content: bytes, start: int) -> httpx2.Response:
    headers = {"content-range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    return httpx2.Response(206, headers=headers, content=content[start:])
