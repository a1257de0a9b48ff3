"""The client in Python: `ElderClient`, and `AsyncElderClient` with the same methods to await.

    with ElderClient() as elder:
        job = elder.submit_job("builtin:manuals-16l", ratio=0.25)
        elder.wait_for_job(job.id)
        elder.download(job.id, Path("pruned"))

Every method raises the errors of `elder_client.errors` and no others.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

import httpx2

from elder_client import flows, protocol
from elder_client.download import DownloadProgress, OnProgress, download
from elder_client.errors import InvalidServerUrl
from elder_client.flows import Emit, Flow, Run
from elder_client.protocol import ListOptions, SubmitOptions
from elder_client.retry import CALLS, OUTAGE, RetryPolicy
from elder_client.runners import AsyncRunner, SyncRunner
from elder_client.types import Artifact, Job, JobEvent, MethodInfo, Report

T = TypeVar("T")

DEFAULT_SERVER = "http://127.0.0.1:8321"
TIMEOUT = httpx2.Timeout(30, connect=5)
POLL_SECONDS = 1.0


class WaitOptions(TypedDict, total=False):
    """`check`: raise when the job ends without a result (default). `timeout_seconds`: how long to wait at most."""

    timeout_seconds: float | None
    poll_seconds: float
    check: bool


class _Operations:
    """What both clients do, as flows; `retry` is for single calls, `outage` for waiting and downloads."""

    def __init__(self, retry: RetryPolicy, outage: RetryPolicy) -> None:
        self._retry = retry
        self._outage = outage

    def _call(self, call: protocol.Call[T]) -> Flow[T]:
        return flows.call(call, self._retry)

    def _list(self, options: ListOptions) -> Flow[None]:
        return flows.each_job(lambda after: protocol.list_jobs(options, after=after), self._retry)

    def _wait(self, job_id: str, options: WaitOptions) -> Flow[Job]:
        return flows.wait_for_job(
            job_id,
            self._outage,
            poll_seconds=options.get("poll_seconds", POLL_SECONDS),
            timeout_seconds=options.get("timeout_seconds"),
            check=options.get("check", True),
        )

    def _follow(self, job_id: str, after: int, poll_seconds: float) -> Flow[None]:
        return flows.follow_events(job_id, self._outage, after=after, poll_seconds=poll_seconds)

    def _download(
        self, job_id: str, folder: Path, names: Collection[str] | None, on_progress: OnProgress
    ) -> Flow[list[Path]]:
        return download(job_id, folder, self._outage, names=names, on_progress=on_progress)


def ignore_progress(_: DownloadProgress) -> None:
    """For callers who do not watch."""


def _http_options(server: str) -> dict[str, Any]:
    """Settings of both HTTP clients.

    Raises:
        InvalidServerUrl: `server` is no http(s) URL.
    """
    try:
        url = httpx2.URL(server)
    except httpx2.InvalidURL as error:
        raise InvalidServerUrl(f"{server!r} is no URL: {error}.") from error
    if url.scheme not in {"http", "https"} or not url.host or not 0 < (url.port or 80) < 65536:
        raise InvalidServerUrl(f"{server!r} is no http(s) URL; give one such as {DEFAULT_SERVER}.")
    return {
        "base_url": url,
        "timeout": TIMEOUT,
        "headers": {"User-Agent": f"elder-client/{version('elder')}"},
        "trust_env": not _is_loopback(url.host),  # a proxy cannot reach the caller's own machine
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ElderClient(_Operations):
    """A connection to an elder server. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        retry: RetryPolicy = CALLS,
        outage: RetryPolicy = OUTAGE,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        super().__init__(retry, outage)
        self._http = httpx2.Client(transport=transport, **_http_options(server))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit_job(self, model: str, **options: Unpack[SubmitOptions]) -> Job:
        """Queue a job for `model`; trying again after a broken connection never makes a second one."""
        return self._run(self._call(protocol.submit_job(model, options)))

    def get_job(self, job_id: str) -> Job:
        return self._run(self._call(protocol.get_job(job_id)))

    def list_jobs(self, **options: Unpack[ListOptions]) -> Iterator[Job]:
        """All jobs, newest first, fetched a page at a time as they are asked for."""
        return self._iterate(self._list(options))

    def cancel_job(self, job_id: str) -> Job:
        """Ask for an end; an ended job is returned as it is."""
        return self._run(self._call(protocol.cancel_job(job_id)))

    def wait_for_job(self, job_id: str, **options: Unpack[WaitOptions]) -> Job:
        """The job once it has ended; outlasts a restart of the server."""
        return self._run(self._wait(job_id, options))

    def stream_events(self, job_id: str, *, after: int = 0, poll_seconds: float = POLL_SECONDS) -> Iterator[JobEvent]:
        """Events as they come, until the job ends; outlasts broken connections and a restart of the server."""
        return self._iterate(self._follow(job_id, after, poll_seconds))

    def report(self, job_id: str) -> Report:
        return self._run(self._call(protocol.get_report(job_id)))

    def report_html(self, job_id: str) -> str:
        """The report for people, one self-contained page."""
        return self._run(self._call(protocol.get_report_html(job_id)))

    def artifacts(self, job_id: str) -> list[Artifact]:
        return list(self._run(self._call(protocol.list_artifacts(job_id))).data)

    def download(
        self,
        job_id: str,
        folder: Path,
        *,
        names: Collection[str] | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> list[Path]:
        """Fetch the artefacts (those in `names`, or all) and return their paths; goes on where it was broken off."""
        return self._run(self._download(job_id, folder, names, on_progress))

    def methods(self) -> list[MethodInfo]:
        return list(self._run(self._call(protocol.list_methods())).data)

    def _run(self, flow: Flow[T]) -> T:
        run = Run(flow)
        with SyncRunner(self._http) as runner:
            while run.effect is not None:
                assert not isinstance(run.effect, Emit)  # such flows go through _iterate
                runner.step(run, run.effect)
        return run.result

    def _iterate(self, flow: Flow[None]) -> Iterator[Any]:
        run = Run(flow)
        with SyncRunner(self._http) as runner:
            while run.effect is not None:
                if isinstance(run.effect, Emit):
                    yield run.effect.value
                    run.answer(None)
                else:
                    runner.step(run, run.effect)


class AsyncElderClient(_Operations):
    """`ElderClient` for asyncio. While a download writes a chunk to disk, the event loop waits."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        retry: RetryPolicy = CALLS,
        outage: RetryPolicy = OUTAGE,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(retry, outage)
        self._http = httpx2.AsyncClient(transport=transport, **_http_options(server))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def submit_job(self, model: str, **options: Unpack[SubmitOptions]) -> Job:
        return await self._run(self._call(protocol.submit_job(model, options)))

    async def get_job(self, job_id: str) -> Job:
        return await self._run(self._call(protocol.get_job(job_id)))

    def list_jobs(self, **options: Unpack[ListOptions]) -> AsyncIterator[Job]:
        return self._iterate(self._list(options))

    async def cancel_job(self, job_id: str) -> Job:
        return await self._run(self._call(protocol.cancel_job(job_id)))

    async def wait_for_job(self, job_id: str, **options: Unpack[WaitOptions]) -> Job:
        return await self._run(self._wait(job_id, options))

    def stream_events(
        self, job_id: str, *, after: int = 0, poll_seconds: float = POLL_SECONDS
    ) -> AsyncIterator[JobEvent]:
        return self._iterate(self._follow(job_id, after, poll_seconds))

    async def report(self, job_id: str) -> Report:
        return await self._run(self._call(protocol.get_report(job_id)))

    async def report_html(self, job_id: str) -> str:
        return await self._run(self._call(protocol.get_report_html(job_id)))

    async def artifacts(self, job_id: str) -> list[Artifact]:
        return list((await self._run(self._call(protocol.list_artifacts(job_id)))).data)

    async def download(
        self,
        job_id: str,
        folder: Path,
        *,
        names: Collection[str] | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> list[Path]:
        return await self._run(self._download(job_id, folder, names, on_progress))

    async def methods(self) -> list[MethodInfo]:
        return list((await self._run(self._call(protocol.list_methods()))).data)

    async def _run(self, flow: Flow[T]) -> T:
        run = Run(flow)
        async with AsyncRunner(self._http) as runner:
            while run.effect is not None:
                assert not isinstance(run.effect, Emit)  # such flows go through _iterate
                await runner.step(run, run.effect)
        return run.result

    async def _iterate(self, flow: Flow[None]) -> AsyncIterator[Any]:
        run = Run(flow)
        async with AsyncRunner(self._http) as runner:
            while run.effect is not None:
                if isinstance(run.effect, Emit):
                    yield run.effect.value
                    run.answer(None)
                else:
                    await runner.step(run, run.effect)
