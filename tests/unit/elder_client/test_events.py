"""Following a job: every event once and in order, whatever happens to the stream."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from elder_client.client import ElderClient
from elder_client.errors import NotFound, ServerUnreachable, UnexpectedAnswer
from tests.unit.elder_client.scripted import (
    EVENT_STREAM,
    JOB,
    SERVER,
    Caller,
    Pieces,
    Script,
    answer,
    event,
    event_list,
    job,
    refusal,
    sse,
    stream,
)

ALL = [event(1, "job.created"), event(2, "job.stage", stage="loading"), event(3), event(4, "job.succeeded")]


def follow(call: Caller, answers: list[Any], **options: Any) -> tuple[list[int], Script]:
    script = Script(answers)
    events = call(script, "stream_events", JOB, poll_seconds=0, **options)
    assert not script.answers
    return [item.seq for item in events], script


def test_a_stream_is_read_to_the_event_that_ends_the_job(call: Caller) -> None:
    seqs, script = follow(call, [stream(sse(*ALL, event(5)))])
    assert seqs == [1, 2, 3, 4]
    assert script.requests[0].headers["accept"] == "text/event-stream"
    assert "last-event-id" not in script.requests[0].headers


@pytest.mark.parametrize("size", [1, 2, 7])
def test_chunks_may_be_split_anywhere(call: Caller, size: int) -> None:
    body = sse(*(event(seq, note="λ → 0") for seq in (1, 2)), event(3, "job.succeeded")).replace(b"\n", b"\r\n")
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    assert follow(call, [stream(*pieces)])[0] == [1, 2, 3]


def test_comments_and_data_of_many_lines_are_read(call: Caller) -> None:
    lines = json.dumps(event(1, "job.failed", error={"code": "x"}), indent=1).splitlines()
    body = ": keep-alive\n\nretry: 10\n\n" + "".join(f"data: {line}\n" for line in lines) + "id: 1\n\n"
    assert follow(call, [stream(body.encode())])[0] == [1]


def test_a_broken_stream_is_resumed_after_the_last_event(call: Caller) -> None:
    broken = stream(sse(*ALL[:2]), sse(ALL[2])[:30], httpx2.ReadError("reset"))
    seqs, script = follow(call, [broken, answer(job("running")), event_list(), stream(sse(*ALL[2:]))])
    assert seqs == [1, 2, 3, 4]
    assert script.requests[-1].headers["last-event-id"] == "2"
    assert script.requests[2].url.params["after"] == "2"


def test_events_sent_twice_are_given_once(call: Caller) -> None:
    answers = [stream(sse(*ALL[:3])), answer(job("running")), event_list(*ALL[1:3]), stream(sse(*ALL))]
    assert follow(call, answers)[0] == [1, 2, 3, 4]


def test_a_caller_can_begin_after_an_event(call: Caller) -> None:
    seqs, script = follow(call, [stream(sse(*ALL))], after=2)
    assert seqs == [3, 4]
    assert script.requests[0].headers["last-event-id"] == "2"


def test_following_an_ended_job_from_its_end_ends(call: Caller) -> None:
    assert follow(call, [stream(), answer(job("succeeded")), event_list()], after=4)[0] == []


def test_a_restarting_server_is_waited_for(call: Caller) -> None:
    refused = httpx2.ConnectError("refused")
    answers = [stream(sse(ALL[0]), refused), refused, httpx2.Response(503), answer(job("running"))]
    assert follow(call, [*answers, event_list(ALL[1]), stream(sse(*ALL[2:]))])[0] == [1, 2, 3, 4]


@pytest.mark.parametrize("status", [200, 405, 406])
def test_lists_are_asked_for_where_there_is_no_stream(call: Caller, status: int) -> None:
    lists = [event_list(ALL[0], has_more=True), event_list(*ALL[1:3])]
    answers = [answer({}, status), answer(job("running")), *lists, answer(job("succeeded")), event_list(ALL[3])]
    seqs, script = follow(call, answers)
    assert seqs == [1, 2, 3, 4]
    assert script.requests[-1].headers["accept"] == "application/json"


def test_streams_that_bring_nothing_are_given_up(call: Caller) -> None:
    fruitless = [item for _ in range(3) for item in (stream(), answer(job("running")), event_list())]
    assert follow(call, [*fruitless, answer(job("succeeded")), event_list(*ALL)])[0] == [1, 2, 3, 4]


def test_an_unknown_job_is_an_error(call: Caller) -> None:
    with pytest.raises(NotFound):
        follow(call, [refusal(404, "job_not_found")])


def test_a_server_that_stays_away_is_an_error(call: Caller) -> None:
    with pytest.raises(ServerUnreachable):
        follow(call, [httpx2.ConnectError("refused")] * 5)


def test_an_event_of_another_shape_is_an_error(call: Caller) -> None:
    with pytest.raises(UnexpectedAnswer):
        follow(call, [stream(b"data: {}\n\n")])


def test_leaving_early_closes_the_stream() -> None:
    class Closing(Pieces):
        closed = False

        def close(self) -> None:
            self.closed = True

    body = Closing(sse(*ALL))
    script = Script([httpx2.Response(200, headers=EVENT_STREAM, stream=body)])
    with ElderClient(SERVER, transport=httpx2.MockTransport(script)) as client:
        events = client.stream_events(JOB)
        next(events)
        events.close()  # type: ignore[attr-defined]
    assert body.closed
