"""The API settles what no worker is there to settle."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.dependencies import Services
from elder_service.jobs import attempts
from elder_service.settings import Settings
from tests.unit.api.calls import submit

PATIENCE_SECONDS = 60


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", maintenance_seconds=0.02, retry_delay_seconds=0)


def claim(services: Services, lease_seconds: float) -> None:
    with services.sessions.begin() as session:
        assert attempts.claim(session, "worker-1", lease_seconds)


def seen(client: TestClient, job_id: str, *unwanted: str) -> str:
    """The job's state as soon as it is none of `unwanted`."""
    end = time.monotonic() + PATIENCE_SECONDS
    while (status := client.get(f"/v1/jobs/{job_id}").json()["status"]) in unwanted:
        assert time.monotonic() < end, f"still {status}"
        time.sleep(0.01)
    return str(status)


def test_a_job_whose_worker_is_gone_is_cancelled_without_another(client: TestClient, services: Services) -> None:
    job_id = submit(client)["id"]
    claim(services, 3600)
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelling"
    with services.sessions.begin() as session:
        attempts.renew(session, attempts.Claim(job_id, 1, None, None), -1)  # type: ignore[arg-type]
    assert seen(client, job_id, "cancelling") == "cancelled"
    events = client.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [event["type"] for event in events][-2:] == ["job.cancelling", "job.cancelled"]


def test_a_lost_job_is_queued_again_and_may_expire(client: TestClient, services: Services) -> None:
    lost = submit(client)["id"]
    claim(services, -1)
    assert seen(client, lost, "running") == "queued"
    late = submit(client, max_queue_seconds=1)["id"]
    assert seen(client, late, "queued") == "expired"


def test_a_job_that_a_worker_holds_is_left_alone(client: TestClient, services: Services) -> None:
    held, late = submit(client)["id"], submit(client, max_queue_seconds=1, priority="low")["id"]
    claim(services, 3600)
    assert client.post(f"/v1/jobs/{held}/cancel").json()["status"] == "cancelling"
    assert seen(client, late, "queued") == "expired"  # so a pass has been made meanwhile
    assert seen(client, held) == "cancelling"
