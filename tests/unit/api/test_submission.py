"""What may go wrong after a job is stored does not reach its caller."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from api.dependencies import Services
from elder_service import queue
from elder_service.jobs import attempts, repository, service

JOB = {"model": {"id": "builtin:manuals-16l"}, "ratio": 0.25}


def hinted(services: Services, job_id: str) -> bool:
    with services.sessions.begin() as session:
        return repository.get(session, job_id).hinted_at is not None


def test_a_hint_locks_no_row_that_a_worker_is_to_claim(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is told within milliseconds, and passes over a row that somebody holds."""
    sent: list[bool] = []

    def claimed_at_once(_: object) -> bool:
        with services.sessions.begin() as session:
            held = attempts.claim(session, "worker-1", 60)
        sent.append(held is not None)
        return True

    monkeypatch.setattr(queue, "send_hint", claimed_at_once)
    monkeypatch.setattr(service, "hint_lost", None)  # no further write
    job_id = client.post("/v1/jobs", json=JOB).json()["id"]
    assert sent == [True]
    assert hinted(services, job_id)


def test_a_hint_that_was_not_taken_is_sent_again(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "send_hint", lambda _: False)
    assert not hinted(services, client.post("/v1/jobs", json=JOB).json()["id"])


def test_a_job_is_accepted_though_it_cannot_be_noted_that_its_hint_was_lost(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("UPDATE jobs", {}, Exception("the database went away"))

    monkeypatch.setattr(queue, "send_hint", lambda _: False)
    monkeypatch.setattr(service, "hint_lost", away)
    answer = client.post("/v1/jobs", json=JOB)
    assert answer.status_code == 201, answer.text
    assert client.get(f"/v1/jobs/{answer.json()['id']}").json()["status"] == "queued"
