"""Single calls: what is sent, what is tried again, which errors come out."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import httpx2
import pytest

from elder_client.client import ElderClient
from elder_client.errors import (
    Conflict,
    ElderApiError,
    InvalidRequest,
    InvalidServerUrl,
    JobCancelled,
    JobExpired,
    JobFailed,
    NotAuthorised,
    NotFound,
    ServerFault,
    ServerUnreachable,
    TooManyRequests,
    UnexpectedAnswer,
    WaitTimeout,
)
from elder_client.types import Status
from tests.unit.elder_client.scripted import JOB, REPORT, RESULT, SERVER, Caller, Script, answer, job, refusal


def test_submitting_sends_only_what_was_given(call: Caller) -> None:
    script = Script([answer(job(), 201)])
    found = call(script, "submit_job", "builtin:tiny", ratio=0.25, revision="v1", metadata={"team": "search"})
    assert found.id == JOB
    assert found.status is Status.QUEUED
    assert json.loads(script.requests[0].content) == {
        "model": {"id": "builtin:tiny", "revision": "v1"},
        "ratio": 0.25,
        "metadata": {"team": "search"},
    }


def test_every_try_of_one_submission_has_the_same_idempotency_key(call: Caller) -> None:
    script = Script([httpx2.ReadTimeout("slow"), refusal(409, "in_flight"), refusal(503, "busy"), answer(job(), 201)])
    call(script, "submit_job", "builtin:tiny", ratio=0.25)
    keys = {request.headers["idempotency-key"] for request in script.requests}
    assert len(script.requests) == 4
    assert len(keys) == 1


def test_two_submissions_have_different_keys_unless_one_is_given(call: Caller) -> None:
    script = Script([answer(job(), 201)] * 3)
    call(script, "submit_job", "m", ratio=0.5)
    call(script, "submit_job", "m", ratio=0.5)
    call(script, "submit_job", "m", ratio=0.5, idempotency_key="mine")
    first, second, third = (request.headers["idempotency-key"] for request in script.requests)
    assert first != second
    assert third == "mine"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_overloaded_server_is_asked_again(call: Caller, status: int) -> None:
    script = Script([httpx2.Response(status), httpx2.ConnectError("refused"), answer(job("running"))])
    assert call(script, "get_job", JOB).status is Status.RUNNING
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, NotAuthorised),
        (403, NotAuthorised),
        (404, NotFound),
        (409, Conflict),
        (413, InvalidRequest),
        (422, InvalidRequest),
        (500, ServerFault),
    ],
)
def test_a_refusal_is_raised_at_once(call: Caller, status: int, kind: type[ElderApiError]) -> None:
    item = {"loc": ["ratio"], "code": "invalid_ratio", "message": "ratio is 2"}
    script = Script([refusal(status, "some_code", "It is wrong.", errors=[item])])
    with pytest.raises(kind) as caught:
        call(script, "get_job", JOB)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.detail, error.request_id) == (status, "some_code", "It is wrong.", "req_1")
    assert error.errors[0].loc == ("ratio",)
    assert str(error) == f"It is wrong. [some_code, HTTP {status}]"


def test_the_last_refusal_of_an_overloaded_server_is_raised(call: Caller) -> None:
    script = Script([refusal(429, "rate_limited")] * 4)
    with pytest.raises(TooManyRequests):
        call(script, "get_job", JOB)
    assert not script.answers


def test_an_error_that_is_no_problem_document_still_says_what_happened(call: Caller) -> None:
    script = Script([httpx2.Response(500, text="<h1>oops</h1>", headers={"x-request-id": "abc"})])
    with pytest.raises(ServerFault, match=r"answered 500 Internal Server Error\. \[http_500") as caught:
        call(script, "get_job", JOB)
    assert caught.value.request_id == "abc"


def test_an_unreachable_server_is_named_with_the_remedy(call: Caller) -> None:
    script = Script([httpx2.ConnectError("Connection refused")] * 4)
    with pytest.raises(ServerUnreachable, match=r"http://elder\.test \(Connection refused\).*elder-server serve"):
        call(script, "get_job", JOB)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"id": 1}'])
def test_another_service_is_recognised(call: Caller, body: bytes) -> None:
    with pytest.raises(UnexpectedAnswer, match="something else than a Job"):
        call(Script([httpx2.Response(200, content=body)]), "get_job", JOB)


@pytest.mark.parametrize("url", ["localhost:8321", "ftp://x", "http://", "http://x:a", "http://x:99999", ""])
def test_a_server_must_be_a_url(url: str) -> None:
    with pytest.raises(InvalidServerUrl):
        ElderClient(url)


def test_a_job_id_cannot_change_the_path(call: Caller) -> None:
    script = Script([answer(job())])
    call(script, "get_job", "../../x?y")
    assert script.requests[0].url.raw_path == b"/v1/jobs/..%2F..%2Fx%3Fy"


def test_jobs_are_listed_over_all_pages(call: Caller) -> None:
    pages = [
        {"data": [job(job_id="job_3"), job(job_id="job_2")], "has_more": True, "first_id": "job_3", "last_id": "job_2"},
        {"data": [job(job_id="job_1")], "has_more": False, "first_id": "job_1", "last_id": "job_1"},
    ]
    script = Script([answer(page) for page in pages])
    since = datetime(2026, 1, 1, tzinfo=UTC)
    found = call(script, "list_jobs", status="queued", page_size=2, metadata={"team": "a b"}, created_after=since)
    assert [item.id for item in found] == ["job_3", "job_2", "job_1"]
    first, second = (dict(request.url.params) for request in script.requests)
    assert first == {
        "limit": "2",
        "status": "queued",
        "metadata[team]": "a b",
        "created_after": "2026-01-01T00:00:00+00:00",
    }
    assert second == first | {"after": "job_2"}


def test_listing_fetches_no_page_before_it_is_needed() -> None:
    script = Script([answer({"data": [job()], "has_more": True, "last_id": JOB})])
    with ElderClient(SERVER, transport=httpx2.MockTransport(script)) as client:
        assert next(client.list_jobs()).id == JOB
    assert len(script.requests) == 1


def test_the_smaller_calls(call: Caller) -> None:
    method = {"name": "elder", "title": "ELDeR", "summary": "s", "source": "https://x", "parameters": {}}
    script = Script(
        [answer(job("cancelling")), answer({"data": [method]}), answer(REPORT), httpx2.Response(200, text="<p>é</p>")]
    )
    assert call(script, "cancel_job", JOB).status is Status.CANCELLING
    assert [item.name for item in call(script, "methods")] == ["elder"]
    assert call(script, "report", JOB).evaluation.ratios["perplexity"] == 1.1
    assert call(script, "report_html", JOB) == "<p>é</p>"
    assert script.paths == [
        "POST /v1/jobs/job_1/cancel",
        "GET /v1/methods",
        "GET /v1/jobs/job_1/report",
        "GET /v1/jobs/job_1/report.html",
    ]


def test_waiting_outlasts_a_server_that_restarts(call: Caller) -> None:
    script = Script(
        [
            answer(job("running")),
            httpx2.ConnectError("refused"),
            httpx2.Response(503),
            answer(job("running")),
            answer(job("succeeded", result=RESULT)),
        ]
    )
    assert call(script, "wait_for_job", JOB, poll_seconds=0).result.perplexity_after == 11.0


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        ("failed", JobFailed, "non_finite_loss"),
        ("cancelled", JobCancelled, "job_cancelled"),
        ("expired", JobExpired, "job_expired"),
    ],
)
def test_waiting_for_a_job_without_a_result_raises(call: Caller, status: str, kind: type[JobFailed], code: str) -> None:
    error = {"code": "non_finite_loss", "message": "The loss became NaN.", "stage": "regularizing"}
    body = job(status, error=error if status == "failed" else None)
    with pytest.raises(kind) as caught:
        call(Script([answer(body)]), "wait_for_job", JOB)
    assert caught.value.code == code
    assert caught.value.job.id == JOB
    assert call(Script([answer(body)]), "wait_for_job", JOB, check=False).status == status


def test_a_failed_job_says_where_and_why(call: Caller) -> None:
    error = {"code": "non_finite_loss", "message": "The loss became NaN.", "stage": "regularizing"}
    with pytest.raises(JobFailed, match=r"Job job_1 failed while regularizing: The loss became NaN\."):
        call(Script([answer(job("failed", error=error))]), "wait_for_job", JOB)


def test_waiting_can_be_limited(call: Caller) -> None:
    script = Script([answer(job("running"))])
    with pytest.raises(WaitTimeout, match="still running after 0 s"):
        call(script, "wait_for_job", JOB, timeout_seconds=0)
