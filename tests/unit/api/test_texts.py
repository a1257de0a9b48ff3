"""What of a job's texts is refused at submission."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from elder_core import inspection
from elder_core.spec import EvaluationSpec
from elder_service.settings import Settings
from tests.unit.api.calls import JOB, refuse, submit

LENGTH = 256  # tokens a sequence, where nothing else is asked for, of builtin:manuals-16l


@pytest.fixture
def texts(settings: Settings) -> Path:
    settings.text_roots[0].mkdir()
    return settings.text_roots[0]


@pytest.mark.parametrize("part", ["calibration", "evaluation"])
def test_a_text_shorter_than_one_sequence_of_the_default_length(client: TestClient, texts: Path, part: str) -> None:
    (texts / "short.txt").write_text("short")
    (texts / "enough.txt").write_text("x" * LENGTH)
    problem = refuse(client, {**JOB, part: {"source": "local:short.txt"}})
    assert (problem["code"], problem["errors"][0]["loc"]) == ("text_too_short", [part, "source"])
    assert f"one sequence of {LENGTH} tokens" in problem["detail"]
    submit(client, **{part: {"source": "local:enough.txt"}})


def test_the_evaluation_is_not_held_to_the_calibration_length(client: TestClient, texts: Path) -> None:
    (texts / "a.txt").write_text("x" * 100)
    submit(client, calibration={"source": "local:a.txt", "sequence_length": 100})
    both = {"calibration": {"sequence_length": 8}, "evaluation": {"source": "local:a.txt"}}
    assert refuse(client, {**JOB, **both})["code"] == "text_too_short"


def test_of_a_hub_model_only_a_length_that_is_named_is_known(client: TestClient, texts: Path) -> None:
    (texts / "short.txt").write_text("short")
    job: dict[str, Any] = {**JOB, "model": {"id": "HuggingFaceTB/SmolLM2-135M"}}
    short = {"source": "local:short.txt"}
    submit(client, **{**job, "calibration": short, "evaluation": short})
    assert refuse(client, {**job, "calibration": {**short, "sequence_length": 64}})["code"] == "text_too_short"


@pytest.mark.parametrize("part", ["calibration", "evaluation"])
def test_a_text_above_the_limit(client: TestClient, texts: Path, settings: Settings, part: str) -> None:
    with (texts / "large.txt").open("wb") as file:
        file.truncate(settings.max_text_bytes + 1)
    problem = refuse(client, {**JOB, part: {"source": "local:large.txt"}})
    assert (problem["code"], problem["errors"][0]["loc"]) == ("text_too_large", [part, "source"])


def test_submission_never_reads_a_whole_text(client: TestClient, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "read_texts", lambda _: pytest.fail("read whole"))
    with (texts / "large.jsonl").open("w") as file:
        file.write('{"text": "a text of twenty-six."}\n' * 40_000)
        file.write("what the worker will refuse")
    submit(client, calibration={"source": "local:large.jsonl"}, evaluation={"source": "local:large.jsonl"})


@pytest.mark.parametrize(
    ("prompts", "loc"),
    [([""], [0]), (["a", ""], [1]), (["x" * 10_001], [0]), (["a"] * 9, [])],
)
def test_prompts_that_cannot_be_continued(client: TestClient, prompts: list[str], loc: list[int]) -> None:
    problem = refuse(client, {**JOB, "evaluation": {"prompts": prompts}})
    assert problem["code"] == "invalid_request"
    assert problem["errors"][0]["loc"] == ["evaluation", "prompts", *loc]


def test_prompts_as_long_as_may_be() -> None:
    assert EvaluationSpec(prompts=("x" * 10_000, "a")).prompts
