"""What the tests of the routes do again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from api.dependencies import Services
from elder_core.disk import file_sha256
from elder_service.jobs import attempts
from elder_service.jobs.attempts import Outcome
from elder_service.storage.base import StoredFile

JOB: dict[str, Any] = {"model": {"id": "builtin:manuals-16l"}, "ratio": 0.25}
RESULT = {
    "removed_layers": [5],
    "layers_before": 16,
    "layers_after": 15,
    "parameters_before": 10,
    "parameters_after": 9,
    "perplexity_before": 10.0,
    "perplexity_after": 11.0,
    "decode_speedup": 1.1,
}


def submit(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/jobs", json={**JOB, **fields})
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    return job


def refuse(client: TestClient, body: Any, status: int = 422, **headers: str) -> dict[str, Any]:
    response = client.post("/v1/jobs", json=body, headers=headers)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


def finish(services: Services, tmp_path: Path, files: dict[str, bytes]) -> str:
    """Claim the next job and let it succeed with these files; its id."""
    with services.sessions.begin() as session:
        held = attempts.claim(session, "w", 60)
        assert held is not None
        stored = []
        for name, content in files.items():
            key = f"jobs/{held.job_id}/attempt-1/{name}"
            (tmp_path / "file").write_bytes(content)
            services.storage.put(key, tmp_path / "file", file_sha256(tmp_path / "file"))
            kind = "report" if name.startswith("report") else "model"
            stored.append(StoredFile(name, kind, key, len(content), "a" * 64))  # type: ignore[arg-type]
        attempts.succeed(session, held, Outcome(result=RESULT, files=tuple(stored)))
        return held.job_id
