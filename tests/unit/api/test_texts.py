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
    untrained = {"name": "shortgpt"}
    problem = refuse(client, {**JOB, part: {"source": "local:short.txt"}})
    assert (problem["code"], problem["errors"][0]["loc"]) == ("text_too_short", [part, "source"])
    assert f"one sequence of {LENGTH} tokens" in problem["detail"]
    submit(client, method=untrained, **{part: {"source": "local:enough.txt"}})


def test_the_evaluation_is_not_held_to_the_calibration_length(client: TestClient, texts: Path) -> None:
    (texts / "a.txt").write_text("x" * 100)
    submit(client, method={"name": "shortgpt"}, calibration={"source": "local:a.txt", "sequence_length": 100})
    both = {"calibration": {"sequence_length": 8}, "evaluation": {"source": "local:a.txt"}}
    assert refuse(client, {**JOB, **both})["code"] == "text_too_short"


def test_of_a_hub_model_only_a_length_that_is_named_is_known(client: TestClient, texts: Path) -> None:
    (texts / "short.txt").write_text("short")
    job: dict[str, Any] = {**JOB, "model": {"id": "HuggingFaceTB/SmolLM2-135M"}}
    short = {"source": "local:short.txt"}
    submit(client, **{**job, "calibration": short})
    submit(client, **{**job, "evaluation": short})
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
    both = {"calibration": {"source": "local:large.jsonl"}, "evaluation": {"source": "local:large.jsonl"}}
    both["evaluation"] |= {"allow_overlap": True}
    submit(client, **both)


def test_one_text_for_both_is_refused_however_it_is_named(client: TestClient, texts: Path) -> None:
    (texts / "a.txt").write_text("x" * 100_000)
    (texts / "b.txt").hardlink_to(texts / "a.txt")
    one, other = {"source": "local:a.txt"}, {"source": "local:b.txt"}
    for evaluation in (one, other):
        problem = refuse(client, {**JOB, "calibration": one, "evaluation": evaluation})
        assert (problem["code"], problem["errors"][0]["loc"]) == ("text_overlap", ["evaluation", "source"])
    submit(client, calibration=one, evaluation={**one, "allow_overlap": True})


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"calibration": {"samples": 8}}, "samples"),
        ({"calibration": {"source": "local:small.txt"}}, "source"),
        ({"method": {"name": "elder", "updates": 1_000_000}}, "source"),
        ({"method": {"name": "elder", "tokens": 0, "gate_steps": 96}, "calibration": {"samples": 5}}, "samples"),
    ],
)
def test_a_budget_far_above_the_text_is_refused(
    client: TestClient, texts: Path, changes: dict[str, Any], loc: str
) -> None:
    (texts / "small.txt").write_text("x" * 1000)
    problem = refuse(client, {**JOB, **changes})
    assert (problem["code"], problem["errors"][0]["loc"]) == ("calibration_too_small", ["calibration", loc])


def test_the_budget_on_a_hub_model_is_known_where_the_length_is_named(client: TestClient) -> None:
    job = {**JOB, "model": {"id": "HuggingFaceTB/SmolLM2-135M"}, "calibration": {"samples": 2, "sequence_length": 64}}
    assert refuse(client, job)["code"] == "calibration_too_small"


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
