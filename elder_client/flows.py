"""What the client does, written once for both clients.

A flow is a generator that performs no input or output on the network itself: it yields an effect, and is sent the
outcome (or thrown `httpx2.RequestError`). `elder_client.client` performs the effects, with or without `await`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import httpx2

from elder_client import protocol
from elder_client.errors import (
    JobCancelled,
    JobExpired,
    JobFailed,
    JobUnsuccessful,
    ServerUnreachable,
    WaitTimeout,
)
from elder_client.protocol import Call, Request
from elder_client.retry import RetryPolicy
from elder_client.types import Job, JobEvent, JobList, Status

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """Send a request; the outcome is the `httpx2.Response`, read."""

    request: Request


@dataclass(frozen=True)
class Open:
    """Send a request, closing what was open; the outcome is the response with its body still to come."""

    request: Request


@dataclass(frozen=True)
class ReadAll:
    """Read the rest of the open response; no outcome."""


@dataclass(frozen=True)
class ReadChunk:
    """The outcome is the next bytes of the open response, or None at its end."""


@dataclass(frozen=True)
class ReadEvent:
    """The outcome is the next `httpx2.ServerSentEvent` of the open response, or None at its end."""


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Emit:
    """Hand a value to whoever iterates."""

    value: Any


Effect = Send | Open | ReadAll | ReadChunk | ReadEvent | Sleep
Flow = Generator[Effect | Emit, Any, T]


class Run(Generic[T]):
    """Steps a flow: `effect` is what it waits for, or None once it has returned `result`."""

    effect: Effect | Emit | None
    result: T

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow
        self.answer(None)

    def answer(self, outcome: object) -> None:
        self._step(lambda: self._flow.send(outcome))

    def fail(self, error: httpx2.RequestError) -> None:
        self._step(lambda: self._flow.throw(error))

    def _step(self, advance: Callable[[], Effect | Emit]) -> None:
        try:
            self.effect = advance()
        except StopIteration as stop:
            self.effect = None
            self.result = stop.value


def call(call: Call[T], policy: RetryPolicy) -> Flow[T]:
    """Send a call until it is answered.

    Raises:
        ElderApiError: the server refused, or is still overloaded after the last try.
        ServerUnreachable: no answer after the last try.
    """
    failures = 0
    while True:
        answer: httpx2.Response | None = None
        try:
            answer = cast("httpx2.Response", (yield Send(call.request)))
        except httpx2.RequestError as error:
            problem: Exception = unreachable(error)
        else:
            if answer.is_success:
                return call.read(answer)
            problem = protocol.error_of(answer)
            if answer.status_code not in call.retry_statuses:
                raise problem
        failures += 1
        yield from pause(policy, failures, problem, answer)


def pause(policy: RetryPolicy, failures: int, problem: Exception, answer: httpx2.Response | None = None) -> Flow[None]:
    """Wait before the next try, or raise `problem` when there is none."""
    delay = policy.delay_after(failures, answer)
    if delay is None:
        raise problem
    yield Sleep(delay)


def unreachable(error: httpx2.RequestError) -> ServerUnreachable:
    url = error.request.url
    problem = ServerUnreachable(f"{url.scheme}://{url.netloc.decode('ascii')}", str(error) or type(error).__name__)
    problem.__cause__ = error
    return problem


def each_job(page: Callable[[str | None], Call[JobList]], policy: RetryPolicy) -> Flow[None]:
    """Emit every job of every page; `page` makes the call for the page after a job id."""
    after: str | None = None
    while True:
        jobs = yield from call(page(after), policy)
        for job in jobs.data:
            yield Emit(job)
        if not jobs.has_more or jobs.last_id is None:
            return
        after = jobs.last_id


def wait_for_job(
    job_id: str, policy: RetryPolicy, *, poll_seconds: float, timeout_seconds: float | None, check: bool
) -> Flow[Job]:
    """Ask for the job until it has ended.

    Raises:
        WaitTimeout: it goes on after `timeout_seconds`.
        JobUnsuccessful: with `check`, it ended without a result.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        job = yield from call(protocol.get_job(job_id), policy)
        if job.ended:
            return check_succeeded(job) if check else job
        remaining = float("inf") if deadline is None else deadline - time.monotonic()
        if timeout_seconds is not None and remaining <= 0:
            raise WaitTimeout(job, timeout_seconds)
        yield Sleep(min(poll_seconds, remaining))


def check_succeeded(job: Job) -> Job:
    """The job, if it succeeded.

    Raises:
        JobFailed, JobCancelled, JobExpired: it ended otherwise.
    """
    errors = {Status.FAILED: JobFailed, Status.CANCELLED: JobCancelled, Status.EXPIRED: JobExpired}
    if job.status == Status.SUCCEEDED:
        return job
    raise errors.get(cast("Status", job.status), JobUnsuccessful)(job)


@dataclass
class _Cursor:
    """How far a caller has read a job's events."""

    seq: int
    ended: bool = False

    def take(self, event: JobEvent) -> Flow[None]:
        if event.seq <= self.seq:
            return  # sent twice, around a reconnect
        self.seq, self.ended = event.seq, event.last
        yield Emit(event)


FRUITLESS_STREAMS = 3
"""Streams in a row that end without an event before the client asks for lists instead: a proxy holds them back."""


def follow_events(job_id: str, policy: RetryPolicy, *, after: int, poll_seconds: float) -> Flow[None]:
    """Emit every event after number `after`, in order and once each, until the one that ends the job.

    A stream that breaks is opened again with `Last-Event-ID`; where none can be had, lists are asked for.

    Raises:
        ElderApiError: the server refused, for instance because there is no such job.
        ServerUnreachable: it did not come back within `policy`.
    """
    cursor = _Cursor(after)
    fruitless = 0
    while fruitless < FRUITLESS_STREAMS:
        seen = cursor.seq
        streams = yield from _stream(job_id, cursor, policy)
        if not streams or cursor.ended:
            break
        # what a list adds here: it waits for a server that restarts, and knows whether the job has ended at all
        if (yield from _catch_up(job_id, cursor, policy)):
            return
        fruitless = 0 if cursor.seq > seen else fruitless + 1
    while not cursor.ended and not (yield from _catch_up(job_id, cursor, policy)):
        yield Sleep(poll_seconds)


def _stream(job_id: str, cursor: _Cursor, policy: RetryPolicy) -> Flow[bool]:
    """Emit events from one stream until it ends or breaks; False where the server offers none."""
    try:
        answer = cast("httpx2.Response", (yield Open(protocol.stream_events(job_id, after=cursor.seq))))
        if answer.status_code in protocol.RETRY_STATUSES:
            return True
        if answer.status_code in {405, 406} or (answer.is_success and not _is_event_stream(answer)):
            return False
        if not answer.is_success:
            yield ReadAll()
            raise protocol.error_of(answer)
        while not cursor.ended and (event := (yield ReadEvent())) is not None:
            if event.data:
                yield from cursor.take(protocol.parse(JobEvent, event.data, str(answer.request.url)))
    except httpx2.RequestError:
        yield Sleep(policy.first_delay)
    return True


def _is_event_stream(answer: httpx2.Response) -> bool:
    content_type: str = answer.headers.get("content-type", "")
    return content_type.partition(";")[0].strip().lower() == protocol.EVENT_STREAM


def _catch_up(job_id: str, cursor: _Cursor, policy: RetryPolicy) -> Flow[bool]:
    """Emit what a stream has missed; True when the job has ended and nothing is left."""
    job = yield from call(protocol.get_job(job_id), policy)  # first, so that its last event is in the list
    has_more = True
    while has_more:
        page = yield from call(protocol.list_events(job_id, after=cursor.seq), policy)
        for event in page.data:
            yield from cursor.take(event)
        has_more = page.has_more
    return cursor.ended or job.ended
