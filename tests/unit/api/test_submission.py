"""What may go wrong after a job is stored does not reach its caller."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from elder_service.jobs import service

JOB = {"model": {"id": "builtin:manuals-16l"}, "ratio": 0.25}


def test_a_job_is_accepted_though_its_hint_cannot_be_noted(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise OperationalError("UPDATE jobs", {}, Exception("the database went away"))

    monkeypatch.setattr(service, "mark_hinted", away)
    answer = client.post("/v1/jobs", json=JOB)
    assert answer.status_code == 201, answer.text
    assert client.get(f"/v1/jobs/{answer.json()['id']}").json()["status"] == "queued"
