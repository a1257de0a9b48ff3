"""Text that no database and no answer can hold is refused wherever it can come in, and spoils no page."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import text

from api.dependencies import Services
from api.main import create_app
from api.schemas import JobCreate
from elder_service.db.engine import make_engine
from elder_service.db.schema import migrate
from elder_service.settings import Settings
from tests.unit.api.calls import JOB, submit

BAD = ["\ud800", "a\udfffb", "\x00", "a\x00"]
FULL: dict[str, Any] = {
    **JOB,
    "model": {"id": "builtin:manuals-16l", "revision": "main"},
    "evaluation": {"prompts": ["one", "two"]},
    "metadata": {"team": "a"},
}


def string_fields() -> list[tuple[str | int, ...]]:
    """Where a job may hold a string, all fields being given."""
    found: list[tuple[str | int, ...]] = []

    def walk(value: Any, *loc: str | int) -> None:
        if isinstance(value, str):
            found.append(loc)
        for key, item in value.items() if isinstance(value, dict) else ():
            walk(item, *loc, key)
        for index, item in enumerate(value) if isinstance(value, list) else ():
            walk(item, *loc, index)

    walk(JobCreate.model_validate(FULL).model_dump(mode="json"))
    return found


def post(client: TestClient, body: Any) -> Response:
    """As ASCII: so half of a surrogate pair can be sent."""
    return client.post("/v1/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"})


def refused(response: Response) -> dict[str, Any]:
    assert response.status_code == 422, response.text
    problem: dict[str, Any] = response.json()
    assert problem["code"] == "invalid_request"
    assert problem["errors"][0]["code"] == "text_not_storable"
    return problem


def test_every_string_of_a_job_is_known_here() -> None:
    assert {loc[:2] for loc in string_fields()} >= {
        ("model", "id"),
        ("model", "revision"),
        ("method", "name"),
        ("calibration", "source"),
        ("evaluation", "source"),
        ("evaluation", "prompts"),
        ("output", "dtype"),
        ("priority",),
        ("metadata", "team"),
    }


@pytest.mark.parametrize("bad", BAD, ids=ascii)
@pytest.mark.parametrize("loc", string_fields(), ids=lambda loc: ".".join(map(str, loc)))
def test_a_string_that_cannot_be_stored(client: TestClient, loc: tuple[str | int, ...], bad: str) -> None:
    body: Any = JobCreate.model_validate(FULL).model_dump(mode="json")
    holder = body
    for key in loc[:-1]:
        holder = holder[key]
    holder[loc[-1]] = bad
    problem = refused(post(client, body))
    assert problem["errors"][0]["loc"] == list(loc)
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("bad", BAD, ids=ascii)
def test_a_name_that_cannot_be_stored(client: TestClient, bad: str) -> None:
    for body in ({**FULL, "metadata": {bad: "a"}}, {**FULL, bad: 1}, {**FULL, "method": {"name": "elder", bad: 1}}):
        refused(post(client, body))


def test_a_body_that_is_no_object(client: TestClient) -> None:
    refused(post(client, "\ud800"))
    refused(post(client, [["\ud800"]]))
    assert post(client, [1]).json()["code"] == "invalid_request"


def test_a_body_nested_deep(client: TestClient) -> None:
    nested: Any = "\ud800"
    for _ in range(900):
        nested = [nested]
    refused(post(client, {**FULL, "metadata": nested}))


def test_not_every_one_of_many_is_listed(client: TestClient) -> None:
    assert len(refused(post(client, {**FULL, "metadata": ["\x00"] * 1000}))["errors"]) == 20


def test_other_text_is_kept_as_it_is(client: TestClient) -> None:
    whole = "\U0001f600 ö \ufffd \u2028\t\r\n\x01"
    body = copy.deepcopy(FULL)
    body["metadata"]["team"] = body["evaluation"]["prompts"][0] = whole
    job = post(client, body).json()
    assert (job["metadata"]["team"], job["spec"]["evaluation"]["prompts"][0]) == (whole, whole)


def test_a_row_that_holds_it_all_the_same_spoils_no_page(client: TestClient, services: Services) -> None:
    job_id = submit(client, metadata={"team": "x"})["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    changes = {
        "metadata": {"team": "\ud800"},
        "spec": {**FULL, "model": {"id": "local:\ud800"}},
        "error": {
            "code": "c",
            "message": "\udfff",
            "stage": None,
            "retryable": False,
            "details": {"log_tail": "\ud800"},
        },
    }
    with services.engine.begin() as connection:
        for column, value in changes.items():
            connection.execute(text(f"UPDATE jobs SET {column} = :value"), {"value": json.dumps(value)})
        connection.execute(text("UPDATE job_events SET data = :value"), {"value": json.dumps({"reason": "\ud800"})})
    assert client.get("/v1/jobs").json()["data"][0]["metadata"] == {"team": "\ufffd"}
    assert client.get(f"/v1/jobs/{job_id}").json()["spec"]["model"]["id"] == "local:\ufffd"
    assert client.get(f"/v1/jobs/{job_id}/events").json()["data"][0]["data"] == {"reason": "\ufffd"}
    for page in ("/", f"/jobs/{job_id}"):
        assert client.get(page).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs?method=%00",
        "/v1/jobs?after=%00",
        "/v1/jobs?metadata[a]=%00",
        "/v1/jobs?metadata[%00]=a",
        "/v1/jobs?%00=a",
        "/v1/jobs/%00",
        "/v1/jobs/%00/events",
        "/v1/jobs/%00/report",
        "/v1/jobs/%00/report.html",
        "/v1/jobs/%00/artifacts",
        f"/v1/jobs/x/artifacts/%00?expires=1&signature={'a' * 64}",
    ],
)
def test_nul_in_an_address(client: TestClient, path: str) -> None:
    refused(client.get(path))


def test_nul_in_an_address_to_cancel(client: TestClient) -> None:
    refused(client.post("/v1/jobs/%00/cancel"))


@pytest.mark.parametrize("path", ["/jobs/%00", "/fragments/jobs/%00", "/?after=%00", "/static/%00"])
def test_nul_in_the_address_of_a_page(client: TestClient, path: str) -> None:
    page = client.get(path)
    assert page.status_code == 422
    assert page.headers["content-type"].startswith("text/html")
    assert "must not hold NUL" in page.text


@pytest.mark.parametrize("name", ["model.id", "model.revision", "metadata", "evaluation.prompts", "idempotency_key"])
def test_nul_in_a_form(client: TestClient, name: str) -> None:
    typed = {"model.id": "builtin:manuals-16l", "method.name": "elder", "target": "ratio", "ratio": "0.25"}
    typed[name] = "a=\x00"
    answer = client.post("/jobs/new", data=typed, headers={"Origin": "http://testserver"}, follow_redirects=False)
    assert answer.status_code == (303 if name == "idempotency_key" else 422)


def test_postgres_is_asked_nothing_that_it_refuses(postgres_database: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres_database)
    engine = make_engine(postgres_database)
    migrate(engine)
    engine.dispose()
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        refused(post(client, {**FULL, "metadata": {"team": "\x00"}}))
        refused(client.get("/v1/jobs?method=%00"))
        refused(client.get("/v1/jobs/%00"))
        job = post(client, FULL).json()
        assert [one["id"] for one in client.get("/v1/jobs?metadata[team]=a").json()["data"]] == [job["id"]]
        events = client.get(f"/v1/jobs/{job['id']}/events", params={"after": 2**31 - 1})
        assert events.json()["data"] == []
