"""How often a job may go through its calibration text."""

from __future__ import annotations

from typing import Any

import pytest

from elder_core.budgets import MOST_TIMES, check_budget, most_layers
from elder_core.errors import CalibrationTooSmall
from elder_core.parameters import ElderParameters, MethodParameters, ShortGptParameters
from elder_core.spec import CalibrationSpec, JobSpec, ModelRef

LENGTH = 10
SEQUENCES = 4
MOST = MOST_TIMES * SEQUENCES  # sequences that may be read


def job(method: MethodParameters, **fields: Any) -> JobSpec:
    return JobSpec(model=ModelRef(id="m"), method=method, **{"layers_to_remove": 4, **fields})


def training(**budget: Any) -> ShortGptParameters:
    return ShortGptParameters(batch_size=1, **budget)


@pytest.mark.parametrize(
    "method",
    [
        training(updates=MOST),
        training(tokens=MOST * LENGTH),
        training(tokens=0),
        training(seconds=10_000_000),
        ElderParameters(tokens=0, gate_steps=MOST),
        ElderParameters(tokens=0, gate_steps=MOST // 4, layers_per_round=1),
        ElderParameters(batch_size=1, updates=MOST * 2, gate_fraction=0.5, gate_steps=MOST * 4),
        ElderParameters(seconds=1, gate_fraction=0.1, gate_steps=100_000),
    ],
)
def test_sixteen_times_are_taken(method: MethodParameters) -> None:
    check_budget(job(method), LENGTH, SEQUENCES, 4)


@pytest.mark.parametrize(
    ("method", "allowed"),
    [
        (training(updates=MOST + 1), f"updates {MOST}"),
        (training(tokens=MOST * LENGTH + 1), f"tokens {MOST * LENGTH}"),
        (ShortGptParameters(batch_size=3, updates=MOST // 3 + 1), f"updates {MOST // 3}"),
        (ElderParameters(tokens=0, gate_steps=MOST + 1), f"gate_steps {MOST}"),
        (ElderParameters(batch_size=1, updates=MOST * 2 + 2, gate_fraction=0.5, gate_steps=1), f"updates {MOST * 2}"),
        (
            ElderParameters(batch_size=1, tokens=MOST * 25, gate_fraction=0.2, gate_steps=1),
            f"tokens {MOST * LENGTH * 10 // 8}",
        ),
        (ElderParameters(tokens=0, gate_steps=MOST // 4 + 1, layers_per_round=1), f"gate_steps {MOST // 4}"),
    ],
)
def test_more_is_refused_with_what_is_allowed(method: MethodParameters, allowed: str) -> None:
    with pytest.raises(CalibrationTooSmall, match=f"at most {allowed}\\.") as caught:
        check_budget(job(method), LENGTH, SEQUENCES, 4)
    assert caught.value.loc == ("calibration", "source")


@pytest.mark.parametrize(
    ("method", "too_large"),
    [
        (ShortGptParameters(updates=1, batch_size=MOST + 1), "batch_size"),
        (
            ElderParameters(tokens=0, gate_steps=1, gate_batch_size=MOST // 4 + 1, layers_per_round=1),
            "gate_batch_size",
        ),
    ],
)
def test_a_batch_that_no_budget_makes_up_for_is_named(method: MethodParameters, too_large: str) -> None:
    with pytest.raises(CalibrationTooSmall, match=f"or a smaller {too_large}\\.") as caught:
        check_budget(job(method), LENGTH, SEQUENCES, 4)
    assert caught.value.loc == ("calibration", "source")


@pytest.mark.parametrize(
    ("sequences", "field", "told"),
    [
        (3, "samples", r"calibration.samples takes no more than 2, .* Give samples 3 \("),
        (2, "source", r"but the calibration text gives no more than 2, .* Give 3 sequences \("),
        (1, "source", r"but the calibration text gives no more than 1, .* Give 3 sequences \("),
    ],
)
def test_what_is_too_few_is_named_the_samples_or_the_text(sequences: int, field: str, told: str) -> None:
    few = job(training(updates=33), calibration=CalibrationSpec(samples=2))
    with pytest.raises(CalibrationTooSmall, match=told) as caught:
        check_budget(few, LENGTH, sequences, 4)
    assert caught.value.loc == ("calibration", field)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("fraction", [0.1, 0.29, 0.42, 0.9])
@pytest.mark.parametrize("budget", ["tokens", "updates"])
def test_what_a_refusal_allows_is_taken(budget: str, fraction: float, size: int) -> None:
    given = {"gate_fraction": fraction, "batch_size": size, "gate_steps": 1}
    with pytest.raises(CalibrationTooSmall) as caught:
        check_budget(job(ElderParameters(**given, **{budget: 100_000})), LENGTH, SEQUENCES, 4)
    allowed = int(str(caught.value).rsplit(" ", 1)[1].rstrip(".").replace(",", ""))
    check_budget(job(ElderParameters(**given, **{budget: allowed})), LENGTH, SEQUENCES, 4)
    with pytest.raises(CalibrationTooSmall):
        check_budget(job(ElderParameters(**given, **{budget: allowed + 1})), LENGTH, SEQUENCES, 4)


def test_of_a_share_for_the_weights_too_what_is_too_much_is_refused() -> None:
    method = ElderParameters(updates=MOST * 4, batch_size=1, gate_fraction=0.75, gate_steps=100_000)
    with pytest.raises(CalibrationTooSmall, match=f"Learning the layer weights would read {MOST * 3} sequences"):
        check_budget(job(method), LENGTH, SEQUENCES, 4)


def test_named_layers_need_no_weights() -> None:
    method = ElderParameters(tokens=0, gate_steps=100_000)
    check_budget(job(method, layers_to_remove=None, layers=(1,)), LENGTH, SEQUENCES, 1)


def test_where_layers_are_named_the_whole_budget_is_for_training() -> None:
    method = ElderParameters(updates=MOST + 1, batch_size=1, gate_fraction=0.5)
    named = job(method, layers_to_remove=None, layers=(1,))
    assert named.method_as_run == method.model_copy(update={"gate_fraction": None})
    assert job(method).method_as_run is method
    with pytest.raises(CalibrationTooSmall, match=f"Training would read {MOST + 1} sequences"):
        check_budget(named, LENGTH, SEQUENCES, 1)


def test_where_a_search_finds_the_depth_all_layers_but_one_may_go() -> None:
    assert most_layers(None, 12) == 11
    assert most_layers(3, 12) == 3


def test_of_a_model_that_is_not_known_yet_one_round_counts() -> None:
    check_budget(job(ElderParameters(tokens=0, gate_steps=MOST, layers_per_round=1)), LENGTH, SEQUENCES, None)


def test_the_turns_that_a_model_of_many_layers_takes_are_counted() -> None:
    method = ElderParameters(tokens=0, gate_share=0.001)
    check_budget(job(method), LENGTH, 10, 4, layers=80)
    check_budget(job(method), LENGTH, 9, 4)
    with pytest.raises(CalibrationTooSmall, match="Learning the layer weights would read 160 sequences"):
        check_budget(job(method), LENGTH, 9, 4, layers=80)
