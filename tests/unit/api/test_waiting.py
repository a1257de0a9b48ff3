"""Whose a job is, what it needs, and what it waits for, by HTTP."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from api.dependencies import Services
from elder_service.jobs import workers
from elder_service.jobs.hardware import Capacity, Device
from tests.unit.api.calls import JOB, refuse, submit


def test_the_owner_comes_from_the_header(client: TestClient) -> None:
    assert submit(client)["owner"] == "default"
    answer = client.post("/v1/jobs", json=JOB, headers={"X-Elder-Owner": "team-a@example.org"})
    assert answer.json()["owner"] == "team-a@example.org"
    problem = refuse(client, JOB, **{"X-Elder-Owner": "a b"})
    assert problem["errors"][0]["loc"] == ["X-Elder-Owner"]


def test_what_is_not_stated_is_estimated(client: TestClient) -> None:
    needs = submit(client)["needs"]
    assert needs["device"] is None
    assert 64e6 < needs["memory_bytes"] < 128e6  # 7.3 million numbers: below 16 MB as they are stored, and trained
    stated = {"device": "cuda", "memory_bytes": 80_000_000_000}
    assert submit(client, needs=stated)["needs"] == stated
    assert submit(client, needs={"device": "cpu"})["needs"] == {"device": "cpu", "memory_bytes": needs["memory_bytes"]}
    refuse(client, {**JOB, "needs": {"gpus": 2}})


def test_a_key_is_for_one_body_with_its_needs(client: TestClient) -> None:
    key = {"Idempotency-Key": "k"}
    body: dict[str, Any] = {**JOB, "needs": {"device": "cuda"}}
    first = client.post("/v1/jobs", json=body, headers=key).json()["id"]
    assert client.post("/v1/jobs", json=body, headers=key).json()["id"] == first
    assert refuse(client, JOB, **key)["code"] == "idempotency_mismatch"


def test_owners_who_use_the_same_key_see_nothing_of_each_other(client: TestClient) -> None:
    def post(owner: str, **body: Any) -> tuple[int, str]:
        headers = {"Idempotency-Key": "nightly", "X-Elder-Owner": owner}
        answer = client.post("/v1/jobs", json={**JOB, **body}, headers=headers)
        return answer.status_code, answer.json()["id"]

    (first, mine), (second, theirs) = post("anna"), post("ben", seed=1)
    assert (first, second) == (201, 201)
    assert mine != theirs
    assert (post("anna"), post("ben", seed=1)) == ((200, mine), (200, theirs))


def test_a_waiting_job_says_what_for(client: TestClient, services: Services) -> None:
    job = submit(client, needs={"device": "cuda", "memory_bytes": 80_000_000_000})
    assert job["waiting_for"] == "No worker is running."
    assert (job["queue_position"], job["estimated_start_at"]) == (None, None)
    with services.sessions.begin() as session:
        workers.register(session, "host:1", Capacity(Device.CUDA, 24 * 10**9, "NVIDIA A10"), 60)
    [worker] = client.get("/v1/workers").json()["data"]
    assert (worker["id"], worker["device"], worker["gpu"]) == ("host:1", "cuda", "NVIDIA A10")
    told = client.get(f"/v1/jobs/{job['id']}").json()["waiting_for"]
    assert told.startswith("It needs a worker with a GPU and 80 GB of memory; the largest has 24 GB.")
    assert told in client.get(f"/jobs/{job['id']}").text
    assert client.get("/v1/jobs").json()["data"][0]["waiting_for"] == told
    assert submit(client, needs={"device": "cuda", "memory_bytes": 10**9})["queue_position"] == 1
