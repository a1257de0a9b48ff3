"""Jobs that another version of the service stored: shown, never a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from api.dependencies import Services
from tests.unit.api.calls import finish, submit

NEWER = {"model": {"id": "local:newer"}, "method": {"name": "dropout"}, "target": {"max_bytes": 1}}


def store(services: Services, column: str, value: Any) -> None:
    with services.engine.begin() as connection:
        connection.execute(text(f"UPDATE jobs SET {column} = :value"), {"value": value})


@pytest.mark.parametrize("spec", [NEWER, {"model": "name"}, {"model": {"id": ""}}, {}])
def test_a_spec_that_this_version_cannot_read_is_shown_as_it_is(
    client: TestClient, services: Services, spec: dict[str, Any]
) -> None:
    job_id = submit(client)["id"]
    store(services, "spec", json.dumps(spec))
    store(services, "method", "dropout")
    other = submit(client)["id"]
    assert client.get(f"/v1/jobs/{job_id}").json()["spec"] == spec
    assert [job["id"] for job in client.get("/v1/jobs").json()["data"]] == [other, job_id]
    for fragment in ("", "/fragments/jobs"):
        listed = client.get(f"{fragment}/").text if not fragment else client.get(fragment).text
        assert f'id="row-{job_id}"' in listed
        assert f'id="row-{other}"' in listed
    page = client.get(f"/jobs/{job_id}")
    assert page.status_code == 200
    assert "Another version of the service took this job" in page.text
    if spec is NEWER:
        assert "<h1>local:newer</h1>" in page.text
        assert "max_bytes" in page.text
    assert "Priority" in page.text
    assert "Seed" not in page.text
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"


def test_a_spec_that_can_be_read_is_shown_by_its_fields(client: TestClient) -> None:
    page = client.get(f"/jobs/{submit(client)['id']}").text
    assert "Another version" not in page
    assert "Calibration text" in page


def test_a_priority_without_a_name_here(client: TestClient, services: Services) -> None:
    job_id = submit(client)["id"]
    store(services, "priority", 7)
    assert client.get(f"/v1/jobs/{job_id}").json()["priority"] == "7"
    assert client.get(f"/jobs/{job_id}").status_code == 200


def test_a_report_that_this_version_cannot_read_is_a_download(
    client: TestClient, services: Services, tmp_path: Path
) -> None:
    job_id = submit(client)["id"]
    finish(services, tmp_path, {"report.json": b'{"schema_version": 2}'})
    page = client.get(f"/jobs/{job_id}")
    assert page.status_code == 200
    assert "report.json" in page.text
    assert "Report</h2>" not in page.text
