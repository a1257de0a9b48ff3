"""Layers that a method chooses and a hybrid's config cannot say: exchanged for the nearest, and told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from elder_core import pipeline
from elder_core.errors import UnsupportedArchitecture
from elder_core.inspection import Sources
from elder_core.methods import expressible
from elder_core.methods.base import Chooser, Context, Method, Selection
from elder_core.methods.random import Random
from elder_core.monitor import Monitor
from elder_core.parameters import RandomParameters
from elder_core.spec import CalibrationSpec, EvaluationSpec, JobSpec, ModelRef
from elder_core.surgery import remove_layers
from elder_core.target import Target
from tests.unit.elder_core.conftest import LAYERS, MakeTiny
from tests.unit.elder_core.test_methods import context_of
from tests.unit.elder_core.test_pipeline import write_text

HYBRID = "jamba"  # attention at 1 and 4, experts at 1, 3 and 5
SOURCES = Sources(allow_paths=True)


class ByWeight(Method):
    """The layers of the smallest of fixed weights."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = weights

    def select(self, context: Context, count: int) -> Selection:
        chosen = sorted(range(len(self.weights)), key=self.weights.__getitem__)[:count]
        return Selection(tuple(sorted(chosen)), tuple(self.weights), "weight")


def chosen(context: Context, weights: Sequence[float], count: int) -> Selection:
    select: Chooser = expressible.chooser(ByWeight(weights), context, (count,))
    return select(count)


def test_a_set_that_can_be_said_is_left_alone(make_tiny: MakeTiny) -> None:
    context = context_of(make_tiny(HYBRID))
    found = chosen(context, (0, 1, 2, 3, 4, 5), 2)
    assert (found.removed, found.chosen) == ((0, 1), None)
    expressible.check(context.model, found, context.monitor)
    assert context.monitor.warnings == []


def test_another_is_taken_by_the_weights_of_the_method_and_told(make_tiny: MakeTiny) -> None:
    context = context_of(make_tiny(HYBRID))
    found = chosen(context, (5, 4, 0, 3, 2, 1), 1)  # without 2 the experts come at 1, 2 and 4
    assert (found.removed, found.chosen) == ((5,), (2,))
    expressible.check(context.model, found, context.monitor)
    assert context.monitor.warnings == [
        "The method chose the layers [2], which the model's config has no words to do without; [2] stayed and [5] went "
        "instead, the nearest that it has words for."
    ]
    remove_layers(context.model, found.removed)


def test_a_number_of_layers_of_which_there_is_no_set(make_tiny: MakeTiny) -> None:
    context = context_of(make_tiny("olmo_hybrid"))
    assert expressible.most_removable(context.model) == LAYERS - 2
    with pytest.raises(UnsupportedArchitecture, match=r"No 5 of the 6 .* Remove 4 \(ratio 0\.67\) or fewer"):
        chosen(context, (0, 1, 2, 3, 4, 5), LAYERS - 1)


def test_layers_that_the_caller_names_are_not_exchanged(make_tiny: MakeTiny) -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"layers \[2\] cannot be removed together"):
        expressible.check(make_tiny(HYBRID), Selection((2,), None, "named"), Monitor())


def test_a_number_that_other_programs_read_and_no_longer_says_it_is_taken_out_and_told(make_tiny: MakeTiny) -> None:
    model, monitor = make_tiny("llama4_text"), Monitor()  # experts at 1, 3 and 5
    expressible.check(model, Selection((1,), None, "named"), monitor)
    assert [warning.partition(":")[0] for warning in monitor.warnings] == [
        "The new config.json does not set interleave_moe_layer_step"
    ]
    expressible.check(model, Selection((4, 5), None, "named"), monitor)
    assert len(monitor.warnings) == 1, "every second as before"
    remove_layers(model, (1,))
    assert "interleave_moe_layer_step" not in model.config.to_dict()
    assert model.config.moe_layers == [2, 4]


@pytest.fixture
def spec(make_tiny: MakeTiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> JobSpec:
    make_tiny(HYBRID).save_pretrained(tmp_path / "hybrid")
    tiny_tokenizer.save_pretrained(tmp_path / "hybrid")
    return JobSpec(
        model=ModelRef(id=str(tmp_path / "hybrid")),
        method=RandomParameters(),
        calibration=CalibrationSpec(source=str(write_text(tmp_path / "calibration.txt", 0)), sequence_length=16),
        evaluation=EvaluationSpec(
            source=str(write_text(tmp_path / "test.txt", 1)), samples=2, speed=False, generation=False
        ),
    )


@pytest.fixture
def seed(make_tiny: MakeTiny) -> int:
    """One with which the layers drawn at random cannot be removed together, at one depth at least."""
    context = context_of(make_tiny(HYBRID))
    for seed in range(20):
        given = Context(context.model, torch.empty(0), seed, context.device, context.monitor)
        if expressible.chooser(Random(RandomParameters()), given, (2,))(2).chosen is not None:
            return seed
    raise AssertionError("all can be said")


def test_runs_plans_and_sweeps_end_with_a_model_and_say_so(spec: JobSpec, seed: int, tmp_path: Path) -> None:
    spec = spec.model_copy(update={"seed": seed})
    two = spec.model_copy(update={"layers_to_remove": 2})
    plan = pipeline.plan(two, sources=SOURCES, device="cpu")
    report = pipeline.run(two, model_dir=tmp_path / "m", report_dir=tmp_path / "r", sources=SOURCES, device="cpu")
    told = [warning for warning in report.warnings if "stayed and" in warning]
    assert len(told) == 1
    assert told[0] in plan.warnings
    assert report.removed_layers == tuple(layer.index for layer in plan.layers if layer.removed)
    found = pipeline.sweep(spec, out=tmp_path / "sweep", counts=(2, 5), sources=SOURCES, device="cpu")
    assert [told[0] in depth.warnings for depth in found.depths] == [True, False]


def test_a_target_is_kept_to_by_sets_that_can_be_said(spec: JobSpec, seed: int) -> None:
    aimed = spec.model_copy(update={"seed": seed, "target": Target(max_perplexity_increase=1000)})
    plan = pipeline.plan(aimed, sources=SOURCES, device="cpu")
    assert plan.expected.layers == LAYERS - 1
