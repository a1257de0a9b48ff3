"""examples/pipeline.py passes and rejects by the report."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import httpx2
import pytest

from elder_client.client import ElderClient
from elder_client.errors import JobFailed
from elder_client.retry import RetryPolicy
from tests.unit.elder_client.scripted import (
    REPORT,
    RESULT,
    SERVER,
    Answer,
    Script,
    answer,
    artifact,
    artifact_list,
    job,
)

EXAMPLE = Path(__file__).parents[3] / "examples" / "pipeline.py"


def optimise(answers: list[Answer], limit: float, out: Path) -> tuple[Any, Script]:
    script = Script(answers)
    function = runpy.run_path(str(EXAMPLE))["optimise"]
    with ElderClient(SERVER, retry=RetryPolicy(first_delay=0), transport=httpx2.MockTransport(script)) as elder:
        return function(elder, "builtin:tiny", 0.25, limit, out), script


def test_a_model_that_lost_little_passes(tmp_path: Path) -> None:
    files = artifact_list(artifact("model/w", b"1"))
    succeeded = job("succeeded", result=RESULT)
    answers: list[Answer] = [
        answer(job(), 201),
        answer(succeeded),
        answer(REPORT),
        files,
        httpx2.Response(200, content=b"1"),
    ]
    passed, script = optimise(answers, 1.2, tmp_path)
    assert passed
    assert (tmp_path / "model" / "w").read_bytes() == b"1"
    assert script.requests[0].headers["idempotency-key"] == "pipeline-builtin:tiny-0.25"


def test_a_model_that_lost_much_is_rejected_and_not_downloaded(tmp_path: Path) -> None:
    passed, _ = optimise([answer(job(), 201), answer(job("succeeded", result=RESULT)), answer(REPORT)], 1.05, tmp_path)
    assert not passed


def test_a_failed_job_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JobFailed):
        optimise([answer(job(), 201), answer(job("failed"))], 1.05, tmp_path)
