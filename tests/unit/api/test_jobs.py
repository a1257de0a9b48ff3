"""The routes, by HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.dependencies import Services
from api.links import LinkSigner
from elder_core.registry import METHODS
from elder_service.settings import Settings
from tests.unit.api.calls import JOB, RESULT, finish, refuse, submit


def test_submit_and_get(client: TestClient) -> None:
    response = client.post("/v1/jobs", json={**JOB, "metadata": {"team": "a"}})
    assert response.status_code == 201
    job = response.json()
    assert job["id"].startswith("job_")
    assert response.headers["location"] == job["urls"]["self"]
    assert (job["status"], job["queue_position"]) == ("queued", None)  # no worker is there
    assert job["spec"]["method"]["name"] == "elder"
    again = client.get(f"/v1/jobs/{job['id']}").json()
    assert again["metadata"] == {"team": "a"}
    assert again["spec"] == job["spec"]


@pytest.mark.parametrize(
    ("change", "code", "loc"),
    [
        ({"ratio": 0}, "invalid_ratio", ["ratio"]),
        ({"ratio": 1}, "invalid_ratio", ["ratio"]),
        ({"ratio": 0.01}, "invalid_ratio", ["ratio"]),
        ({"ratio": 0.99}, "no_layer_left", ["ratio"]),
        ({"ratio": None}, "ambiguous_target", None),
        ({"layers": [1]}, "ambiguous_target", None),
        ({"ratio": None, "layers": [16]}, "layers_out_of_range", ["layers", 0]),
        ({"ratio": None, "layers": [1, 2, 1]}, "duplicate_layers", ["layers", 2]),
        ({"ratio": None, "layers_to_remove": 0}, "layers_out_of_range", ["layers_to_remove"]),
        ({"ratio": None, "layers_to_remove": 16}, "no_layer_left", ["layers_to_remove"]),
        ({"target": {"max_bytes": 9}}, "ambiguous_target", None),
        ({"ratio": None, "target": {}}, "ambiguous_target", None),
        ({"ratio": None, "target": {"max_bytes": 9, "min_speedup": 2}}, "ambiguous_target", None),
        ({"ratio": None, "target": {"min_speedup": 1}}, "invalid_request", ["target", "min_speedup"]),
        ({"ratio": None, "target": {"max_bytes": 1_000_000}}, "target_unreachable", ["target", "max_bytes"]),
        ({"ratio": None, "target": {"max_bytes": 10**9}}, "target_already_met", ["target", "max_bytes"]),
        ({"model": {"id": "builtin:nothing"}}, "model_not_found", ["model", "id"]),
        ({"model": {"id": "local:../etc"}}, "path_forbidden", ["model", "id"]),
        ({"model": {"id": "/etc"}}, "path_forbidden", ["model", "id"]),
        ({"calibration": {"source": "builtin:nothing"}}, "text_not_found", ["calibration", "source"]),
        ({"calibration": {"source": "local:/etc/passwd"}}, "path_forbidden", ["calibration", "source"]),
        ({"calibration": {"sequence_length": 4096}}, "sequence_too_long", ["calibration", "sequence_length"]),
        ({"method": {"name": "eldr"}}, "unknown_method", ["method", "name"]),
        ({"method": {"name": "cut"}}, "layers_not_named", ["method", "name"]),
        ({"method": {"name": "cut"}, "ratio": None, "layers_to_remove": 2}, "layers_not_named", ["method", "name"]),
        ({"method": {"name": "cut"}, "ratio": None, "target": {"max_bytes": 9}}, "layers_not_named", None),
        ({"method": {"name": "cut"}, "ratio": None}, "ambiguous_target", None),
        ({"method": {"name": "cut", "tokens": 9}}, "invalid_request", ["method", "tokens"]),
        ({"method": {"name": "cut"}, "ratio": None, "layers": [16]}, "layers_out_of_range", ["layers", 0]),
        ({"ratio": "much"}, "invalid_request", ["ratio"]),
        ({"rato": 0.5}, "invalid_request", ["rato"]),
        ({"method": {"name": "elder", "updates": -1}}, "invalid_request", ["method", "updates"]),
    ],
)
def test_bad_input_is_refused_by_name(
    client: TestClient, change: dict[str, Any], code: str, loc: list[str | int] | None
) -> None:
    problem = refuse(client, {**JOB, **change})
    assert problem["code"] == code
    if loc is not None:
        assert problem["errors"][0]["loc"] == loc
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "text_empty"), (b"  \n", "text_empty"), (b"\xff\xfe", "text_not_utf8"), (b"short", "text_too_short")],
)
def test_bad_calibration_text_is_refused(client: TestClient, settings: Settings, content: bytes, code: str) -> None:
    settings.text_roots[0].mkdir()
    (settings.text_roots[0] / "x.txt").write_bytes(content)
    problem = refuse(client, {**JOB, "calibration": {"source": "local:x.txt", "sequence_length": 64}})
    assert problem["code"] == code
    assert problem["errors"][0]["loc"] == ["calibration", "source"]


@pytest.mark.parametrize("target", [{"max_perplexity_increase": 0.1}, {"max_bytes": 12_000_000}, {"min_speedup": 1.3}])
def test_a_target_is_taken_instead_of_a_ratio(client: TestClient, target: dict[str, float]) -> None:
    found = submit(client, ratio=None, target=target)["spec"]["target"]
    assert {name: limit for name, limit in found.items() if limit is not None} == target


def test_a_cut_is_taken_with_its_layers(client: TestClient) -> None:
    answer = client.post("/v1/jobs", json={"model": JOB["model"], "method": {"name": "cut"}, "layers": [3, 7]})
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"]["method"] == {"name": "cut"}


def test_a_hub_model_is_looked_at_by_the_worker(client: TestClient) -> None:
    submit(client, model={"id": "HuggingFaceTB/SmolLM2-135M"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": {"name": "elder", "updates": -1}}, "Input should be greater than or equal to 0; found -1"),
        ({"rato": 0.5}, "There is no such field; correct its name or leave it out"),
        ({"method": {"updates": 2}}, "Its 'name' is missing; give it"),
        ({"method": "elder"}, 'Give an object of named fields; found "elder"'),
        ({"model": "m" * 200}, f'Give an object of named fields; found "{"m" * 78}…'),
    ],
)
def test_messages_name_the_value_and_the_remedy(client: TestClient, change: dict[str, Any], told: str) -> None:
    assert refuse(client, {**JOB, **change})["errors"][0]["message"] == told


def test_a_body_that_is_not_said_to_be_json(client: TestClient) -> None:
    response = client.post("/v1/jobs", content=json.dumps(JOB), headers={"content-type": "text/plain"})
    assert response.status_code == 422
    assert "header Content-Type: application/json" in response.json()["detail"]


@pytest.mark.parametrize("body", [b'{"model": "\xff"}', b"[" * 100_000, b'{"seed": ' + b"1" * 5_000 + b"}"])
def test_a_body_that_json_cannot_be_read_from(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_json")


def test_broken_json(client: TestClient) -> None:
    response = client.post("/v1/jobs", content=b"{", headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_json")


def test_a_body_too_large(client: TestClient) -> None:
    problem = refuse(client, {**JOB, "metadata": {"x": "y" * 2_000_000}}, 413)
    assert problem["code"] == "content_too_large"


def test_idempotency(client: TestClient) -> None:
    key = {"Idempotency-Key": "abc"}
    first = client.post("/v1/jobs", json=JOB, headers=key)
    second = client.post("/v1/jobs", json=JOB, headers=key)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert refuse(client, {**JOB, "seed": 1}, 422, **key)["code"] == "idempotency_mismatch"


def test_a_refused_body_does_not_use_up_the_key(client: TestClient) -> None:
    key = {"Idempotency-Key": "abc"}
    refuse(client, {**JOB, "ratio": 7}, 422, **key)
    assert client.post("/v1/jobs", json=JOB, headers=key).status_code == 201


def test_list_filters_and_pages(client: TestClient) -> None:
    ids = [submit(client, metadata={"n": str(number)})["id"] for number in range(3)][::-1]
    page = client.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in page["data"]] == ids[:2]
    assert page["has_more"]
    rest = client.get("/v1/jobs", params={"after": page["last_id"]}).json()
    assert [job["id"] for job in rest["data"]] == ids[2:]
    assert [job["id"] for job in client.get("/v1/jobs", params={"metadata[n]": "1"}).json()["data"]] == [ids[1]]
    assert client.get("/v1/jobs", params={"status": "failed"}).json()["data"] == []
    assert client.get("/v1/jobs", params={"after": "x"}).json()["code"] == "invalid_cursor"
    assert client.get("/v1/jobs", params={"limit": 0}).status_code == 422


def test_cancel_and_unknown_job(client: TestClient) -> None:
    job = submit(client)
    for _ in range(2):
        cancelled = client.post(f"/v1/jobs/{job['id']}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    for path in ("", "/events", "/report", "/report.html", "/artifacts"):
        response = client.get(f"/v1/jobs/job_nothing{path}")
        assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


def test_events_as_list_and_as_stream(client: TestClient) -> None:
    job_id = submit(client)["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    listed = client.get(f"/v1/jobs/{job_id}/events").json()
    assert [(event["seq"], event["type"]) for event in listed["data"]] == [(1, "job.created"), (2, "job.cancelled")]
    assert client.get(f"/v1/jobs/{job_id}/events", params={"limit": 1}).json()["has_more"]
    stream = client.get(f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert [line for line in stream.text.splitlines() if line.startswith("id:")] == ["id: 1", "id: 2"]
    resumed = client.get(f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "1"})
    assert [line for line in resumed.text.splitlines() if line.startswith("id:")] == ["id: 2"]
    data = next(line for line in resumed.text.splitlines() if line.startswith("data:"))
    assert json.loads(data[5:])["type"] == "job.cancelled"


def test_results_and_downloads(client: TestClient, services: Services, tmp_path: Path) -> None:
    job_id = submit(client)["id"]
    assert client.get(f"/v1/jobs/{job_id}/report").json()["code"] == "report_not_ready"
    assert client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"] == []
    finish(services, tmp_path, {"model/a.bin": b"0123456789", "report.json": b"{}", "report.html": b"<p>"})
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["result"] == RESULT
    assert client.get(job["urls"]["report"]).json() == {}
    assert client.get(job["urls"]["report_html"]).text == "<p>"
    files = client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    assert [file["name"] for file in files] == ["model/a.bin", "report.html", "report.json"]
    link = files[0]["download_url"]
    whole = client.get(link)
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    part = client.get(link, headers={"Range": "bytes=4-", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, b"456789")
    beyond = client.get(link, headers={"Range": "bytes=99-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")


def test_links_hold_only_for_what_was_signed(client: TestClient, services: Services, tmp_path: Path) -> None:
    submit(client)
    job_id = finish(services, tmp_path, {"a": b"a", "b": b"b"})
    link = client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"][0]["download_url"]
    assert client.get(link.replace("/a?", "/b?")).json()["code"] == "link_invalid"
    assert client.get(link.split("?")[0]).status_code == 422
    old, _ = LinkSigner(services.settings.signing_key, -5).sign("http://testserver", job_id, "a")
    assert client.get(old).json()["code"] == "link_expired"
    gone, _ = services.links.sign("http://testserver", job_id, "c")
    assert client.get(gone).json()["code"] == "artifact_not_found"


def test_a_broker_that_is_down_refuses_no_job(tmp_path: Path) -> None:
    from api.main import create_app
    from elder_service.db.engine import make_engine
    from elder_service.db.schema import migrate

    settings = Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0")
    migrate(make_engine(settings.effective_database_url))
    with TestClient(create_app(settings)) as client:
        assert submit(client)["status"] == "queued"
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")


def test_health(client: TestClient, services: Services) -> None:
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ok"


def test_methods(client: TestClient) -> None:
    methods = client.get("/v1/methods").json()["data"]
    assert [method["name"] for method in methods] == list(METHODS)
    assert methods[0]["parameters"]["properties"]["gate_penalty"]["description"]


def test_an_unknown_path_is_a_problem_too(client: TestClient) -> None:
    response = client.get("/v1/nothing")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
