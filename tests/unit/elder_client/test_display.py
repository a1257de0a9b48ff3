from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from elder_client.display import Follower, describe, format_metrics, format_number, format_seconds
from elder_client.types import JobEvent
from tests.unit.elder_client.scripted import event


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(8_000_000, "8,000,000"), (42.3456, "42.35"), (1234.5, "1,234")])
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


def test_metrics_are_few_and_short() -> None:
    assert format_metrics({"lm_loss": 1.23456, "b": 2, "c": 3, "d": 4}) == "lm loss 1.235  b 2  c 3"


def test_a_failure_names_its_code() -> None:
    failed = JobEvent.model_validate(event(1, "job.failed", error={"code": "runner_died", "message": "SIGKILL."}))
    assert describe(failed) == "failed [runner_died]: SIGKILL."


def test_a_terminal_has_a_bar_below_the_lines() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    progress: dict[str, Any] = {"stage": "selecting", "step": 5, "total": 10, "fraction": 0.5, "metrics": {"loss": 2.5}}
    with Follower(console) as follower:
        for item in (event(1, "job.created"), event(2, "job.stage", stage="[x]"), event(3, **progress)):
            follower.show(JobEvent.model_validate(item))
        follower._bar.refresh()
    shown = screen.getvalue()
    assert "50%" in shown
    assert "loss 2.5" in shown
    assert "[x]" in shown
