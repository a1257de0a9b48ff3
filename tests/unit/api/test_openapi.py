"""The OpenAPI document says all that a route can answer: every answer in it is provoked, and compared with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema  # check-jsonschema brings it
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy.exc import OperationalError

from api.links import LinkSigner
from api.main import create_app
from api.storable import refuse_nul
from elder_service.db.engine import make_engine
from elder_service.db.schema import migrate
from elder_service.settings import Settings
from tests.unit.api.calls import JOB, finish
from tests.unit.elder_core.test_reports import report as sample_report

STREAM = {"Accept": "text/event-stream"}
ITEM = {
    "/v1/jobs/{job_id}": "/v1/jobs/{}",
    "/v1/jobs/{job_id}/events": "/v1/jobs/{}/events",
    "/v1/jobs/{job_id}/report": "/v1/jobs/{}/report",
    "/v1/jobs/{job_id}/report.html": "/v1/jobs/{}/report.html",
    "/v1/jobs/{job_id}/artifacts": "/v1/jobs/{}/artifacts",
}
ARTIFACT = "/v1/jobs/{job_id}/artifacts/{name}"


@dataclass
class Service:
    """The API with one job that is done and one that waits, and ways to break it."""

    app: FastAPI
    client: TestClient
    done: str
    waiting: str

    def link(self, name: str, life_seconds: int = 60) -> str:
        signer = LinkSigner(self.app.state.services.settings.signing_key, life_seconds)
        return signer.sign("", self.done, name)[0]

    def without_database(self) -> None:
        def down() -> AbstractContextManager[Any]:
            raise OperationalError("SELECT 1", {}, Exception("away"))

        sessions = type("Sessions", (), {"begin": staticmethod(down)})()
        engine = make_engine("postgresql://nobody@127.0.0.1:1/none")
        self.app.state.services = replace(self.app.state.services, sessions=sessions, engine=engine)

    def with_a_fault(self) -> None:
        def broken() -> None:
            raise RuntimeError("a fault")

        self.app.dependency_overrides[refuse_nul] = broken


@pytest.fixture
def service(settings: Settings, tmp_path: Path) -> Any:
    app = create_app(settings)
    migrate(app.state.services.engine)
    with TestClient(app, raise_server_exceptions=False) as client:
        report = sample_report().model_dump_json().encode()
        client.post("/v1/jobs", json=JOB)
        files = {"model/a.bin": b"0123456789", "report.json": report, "report.html": b"<p>"}
        done = finish(app.state.services, tmp_path, files)
        waiting = client.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "k"}).json()["id"]
        yield Service(app, client, done, waiting)


Provocation = Callable[[Service], Response]


def get(url: str, **headers: str) -> Provocation:
    return lambda service: service.client.get(url.format(done=service.done, waiting=service.waiting), headers=headers)


def post(url: str, json: Any = None, content: bytes | None = None, **headers: str) -> Provocation:
    return lambda service: service.client.post(
        url.format(done=service.done, waiting=service.waiting), json=json, content=content, headers=headers
    )


def broken(how: Callable[[Service], None], call: Provocation) -> Provocation:
    def provoke(service: Service) -> Response:
        how(service)
        return call(service)

    return provoke


def provocations() -> dict[tuple[str, str, int], Provocation]:
    """By method, path and status."""
    large = {"content": b"x" * 1_100_000}
    found: dict[tuple[str, str, int], Provocation] = {
        ("post", "/v1/jobs", 200): post("/v1/jobs", JOB, **{"Idempotency-Key": "k"}),
        ("post", "/v1/jobs", 201): post("/v1/jobs", JOB),
        ("post", "/v1/jobs", 400): post("/v1/jobs", content=b"{", **{"Content-Type": "application/json"}),
        ("post", "/v1/jobs", 413): post("/v1/jobs", **large),
        ("post", "/v1/jobs", 422): post("/v1/jobs", {**JOB, "ratio": 7}),
        ("get", "/v1/jobs", 200): get("/v1/jobs"),
        ("get", "/v1/jobs", 422): get("/v1/jobs?limit=0"),
        ("get", "/v1/jobs/{job_id}/events", 204): get("/v1/jobs/{done}/events?after=99", **STREAM),
        ("get", "/v1/jobs/{job_id}/report", 409): get("/v1/jobs/{waiting}/report"),
        ("get", "/v1/jobs/{job_id}/report.html", 409): get("/v1/jobs/{waiting}/report.html"),
        ("post", "/v1/jobs/{job_id}/cancel", 200): post("/v1/jobs/{waiting}/cancel"),
        ("post", "/v1/jobs/{job_id}/cancel", 404): post("/v1/jobs/job_missing/cancel"),
        ("post", "/v1/jobs/{job_id}/cancel", 413): post("/v1/jobs/{waiting}/cancel", **large),
        ("post", "/v1/jobs/{job_id}/cancel", 422): post(f"/v1/jobs/{'x' * 41}/cancel"),
        ("get", ARTIFACT, 200): lambda service: service.client.get(service.link("model/a.bin")),
        ("get", ARTIFACT, 206): lambda service: service.client.get(
            service.link("model/a.bin"), headers={"Range": "bytes=4-"}
        ),
        ("get", ARTIFACT, 403): lambda service: service.client.get(service.link("model/a.bin", -5)),
        ("get", ARTIFACT, 404): lambda service: service.client.get(service.link("model/b.bin")),
        ("get", ARTIFACT, 416): lambda service: service.client.get(
            service.link("model/a.bin"), headers={"Range": "bytes=99-"}
        ),
        ("get", ARTIFACT, 422): get("/v1/jobs/{done}/artifacts/model/a.bin"),
        ("get", "/v1/methods", 200): get("/v1/methods"),
        ("get", "/v1/workers", 200): get("/v1/workers"),
        ("get", "/livez", 200): get("/livez"),
        ("get", "/readyz", 200): get("/readyz"),
    }
    for path, url in ITEM.items():
        found["get", path, 200] = get(url.replace("{}", "{done}"))
        found["get", path, 404] = get(url.format("job_missing"))
        found["get", path, 422] = get(url.format("x" * 41))
    for method, path in {(method, path) for method, path, _ in found}:
        call = next(found[key] for key in found if key[:2] == (method, path) and key[2] < 300)
        found[method, path, 500] = broken(Service.with_a_fault, call)
        if path not in ("/livez", "/v1/methods"):
            found[method, path, 503] = broken(Service.without_database, call)
    return found


PROVOCATIONS = provocations()


def documented(document: dict[str, Any]) -> set[tuple[str, str, int]]:
    return {
        (method, path, int(status))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for status in operation["responses"]
    }


def test_every_answer_of_the_document_is_provoked_here(client: TestClient) -> None:
    assert documented(client.get("/openapi.json").json()) == set(PROVOCATIONS)


@pytest.mark.parametrize("key", PROVOCATIONS, ids=lambda key: f"{key[0]} {key[1]} {key[2]}")
def test_the_answer_is_the_one_that_is_documented(service: Service, key: tuple[str, str, int]) -> None:
    method, path, status = key
    document = service.client.get("/openapi.json").json()
    response = PROVOCATIONS[key](service)
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"].startswith("req_")
    content = document["paths"][path][method]["responses"][str(status)].get("content", {})
    kind = response.headers.get("content-type", "").partition(";")[0]
    if status >= 400:
        assert kind == "application/problem+json"
        assert response.json()["request_id"] == response.headers["x-request-id"]
    if status == 204:
        assert (content, response.content) == ({}, b"")
    elif path != ARTIFACT or status >= 400:
        assert kind in content
        if kind.endswith("json"):
            schema = content[kind]["schema"]
            jsonschema.validate(response.json(), {**schema, "components": document["components"]})


def test_nothing_is_referred_to_that_is_not_there(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    for reference in {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}:
        assert reference in schemas, reference


def test_not_ready_says_which_part_is_not(service: Service) -> None:
    service.without_database()
    problem = service.client.get("/readyz").json()
    assert (problem["code"], problem["status"]) == ("not_ready", 503)
    assert problem["checks"] == {"database": "unreachable", "broker": "ok"}
