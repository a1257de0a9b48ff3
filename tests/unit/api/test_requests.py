"""What holds for every request: its line in the log, its id, and whose fault an error is."""

from __future__ import annotations

import logging
import re

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from elder_service.jobs import repository, service
from tests.unit.api.calls import JOB, refuse, submit

LINE = re.compile(r"(\w+) (\S+) (\d+) \d+\.\d{3} s (req_\w+)")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "api.middleware")
    return caplog


def logged(log: pytest.LogCaptureFixture) -> list[tuple[str, ...]]:
    found = [LINE.fullmatch(line.getMessage()) for line in log.records if line.name == "api.middleware"]
    assert all(found)
    return [match.groups() for match in found if match]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("GET", "/", 200),
        ("GET", "/v1/jobs/job_missing", 404),
        ("POST", "/v1/jobs", 422),
        ("GET", "/v1/none", 404),
        ("DELETE", "/v1/jobs", 405),
    ],
)
def test_each_request_is_one_line_with_its_id(
    client: TestClient, log: pytest.LogCaptureFixture, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert logged(log) == [(method, path, str(status), response.headers["x-request-id"])]


def test_the_line_of_a_body_too_large(client: TestClient, log: pytest.LogCaptureFixture) -> None:
    problem = refuse(client, {**JOB, "metadata": {"x": "y" * 2_000_000}}, 413)
    assert logged(log) == [("POST", "/v1/jobs", "413", problem["request_id"])]


def test_a_line_holds_no_signature_and_no_line_end(client: TestClient, log: pytest.LogCaptureFixture) -> None:
    client.get("/v1/jobs/a%0ab?signature=secret")
    assert logged(log)[0][1] == "/v1/jobs/a%0Ab"


def test_a_fault_has_its_id_in_answer_header_and_log(
    client: TestClient, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(service, "cancel", broken)
    response = client.post("/v1/jobs/x/cancel")
    request_id = response.json()["request_id"]
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "unforeseen" not in response.text
    assert response.headers["x-request-id"] == request_id
    assert logged(log) == [("POST", "/v1/jobs/x/cancel", "500", request_id)]
    assert any(line.exc_info and request_id in line.getMessage() for line in log.records)


# What a caller sends wrongly is the caller's fault


@pytest.mark.parametrize(
    "key",
    ['a"b', "a'b", "a b", "", "a[b", "ö", "a\n", "x" * 65],
    ids=["quote", "'", "space", "none", "[", "ö", "n", "long"],
)
def test_a_metadata_key_of_other_characters(client: TestClient, key: str) -> None:
    problem = refuse(client, {**JOB, "metadata": {key: "x"}})
    assert problem["errors"][0]["loc"] == ["metadata", key]
    answer = client.get("/v1/jobs", params={f"metadata[{key}]": "x"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["loc"] == [f"metadata[{key}]"]


def test_metadata_keys_as_they_may_be(client: TestClient) -> None:
    key = "Team.a/b_c:d-" + "x" * 51
    job = submit(client, metadata={key: "1", "0": "2"})
    for asked in (key, "0"):
        found = client.get("/v1/jobs", params={f"metadata[{asked}]": job["metadata"][asked]}).json()
        assert [one["id"] for one in found["data"]] == [job["id"]]


def test_more_metadata_than_a_job_has(client: TestClient) -> None:
    asked = {f"metadata[{number}]": "x" for number in range(33)}
    assert client.get("/v1/jobs", params=asked).status_code == 422
    asked.popitem()
    assert client.get("/v1/jobs", params=asked).json()["data"] == []


@pytest.mark.parametrize(
    "time",
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1969-12-31T23:59:59Z", "2026-01-01T00:00:00", "then"],
)
def test_a_time_that_is_none(client: TestClient, time: str) -> None:
    problem = client.get("/v1/jobs", params={"created_after": time}).json()
    assert (problem["status"], problem["errors"][0]["loc"]) == (422, ["created_after"])


def test_a_time_is_that_of_its_offset(client: TestClient) -> None:
    job = submit(client)
    for time, seen in (("1970-01-01T00:00:00Z", True), ("9998-12-30T23:59:59-14:00", False)):
        found = client.get("/v1/jobs", params={"created_after": time}).json()["data"]
        assert [one["id"] for one in found] == [job["id"]] * seen


@pytest.mark.parametrize(("name", "where"), [("after", "params"), ("Last-Event-ID", "headers")])
def test_an_event_number_above_all(client: TestClient, name: str, where: str) -> None:
    job = submit(client)
    for number, status in ((2**31 - 1, 200), (2**31, 422), (10**30, 422)):
        response = client.get(f"/v1/jobs/{job['id']}/events", **{where: {name: str(number)}})
        assert response.status_code == status


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\xe9"])
def test_an_idempotency_key_of_other_characters(client: TestClient, key: str) -> None:
    refuse(client, JOB, 422, **{"Idempotency-Key": key.encode("latin-1")})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "status"), [(OperationalError, 503), (InterfaceError, 503), (PoolTimeout, 503), (ProgrammingError, 500)]
)
def test_a_database_that_may_come_back_is_told_from_a_fault(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: type[SQLAlchemyError], status: int
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error("SELECT", {}, Exception("the connection is closed")) if error is not PoolTimeout else error("full")

    monkeypatch.setattr(repository, "list_jobs", fails)
    answer = client.get("/v1/jobs")
    assert answer.status_code == status
    assert answer.json()["code"] == ("database_unavailable" if status == 503 else "internal_error")
