"""Finding how many layers go: by perplexity, speed or bytes, and what a plan says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from elder_core import depth, pipeline
from elder_core.depth import deepest, fewest_for_speed, ideal_speedup
from elder_core.errors import NonFiniteLoss, TargetAlreadyMet, TargetUnreachable
from elder_core.evaluation.quality import Quality, quality
from elder_core.inspection import Sources
from elder_core.methods.base import Chooser, Context, Method, Selection
from elder_core.methods.last import Last
from elder_core.methods.shortgpt import ShortGpt
from elder_core.parameters import MethodParameters, PruneCompParameters, ReplaceMeParameters, ShortGptParameters
from elder_core.spec import CalibrationSpec, EvaluationSpec, JobSpec, ModelRef, OutputSpec, Precision, Report, Stage
from elder_core.surgery import bypassed
from elder_core.target import Target
from tests.unit.elder_core.conftest import LAYERS
from tests.unit.elder_core.test_pipeline import write_text

SOURCES = Sources(allow_paths=True)
WINDOW = 16


@pytest.fixture(autouse=True)
def quick_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "SPEED_SECONDS", 0)


@pytest.fixture
def spec(tiny_checkpoint: Path, tmp_path: Path) -> JobSpec:
    return JobSpec(
        model=ModelRef(id=str(tiny_checkpoint)),
        method=ShortGptParameters(),
        calibration=CalibrationSpec(source=str(write_text(tmp_path / "calibration.txt", 0)), sequence_length=WINDOW),
        evaluation=EvaluationSpec(
            source=str(write_text(tmp_path / "test.txt", 1)), samples=4, speed=False, generation=False
        ),
    )


def aimed(spec: JobSpec, **target: Any) -> JobSpec:
    return spec.model_copy(update={"target": Target(**target)})


def plan(spec: JobSpec) -> pipeline.Plan:
    return pipeline.plan(spec, sources=SOURCES, device="cpu")


def run(spec: JobSpec, folder: Path) -> Report:
    return pipeline.run(spec, model_dir=folder / "model", report_dir=folder, sources=SOURCES, device="cpu")


def removed(found: pipeline.Plan) -> tuple[int, ...]:
    return tuple(layer.index for layer in found.layers if layer.removed)


# How deep ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "expected"),
    [
        (range(1, 13), 12),
        (range(1, 32), 31),
        ((), 0),
        ((1,), 1),
        ((*range(1, 13), 14), 14),
        ((*range(1, 13), 15), 15),
        ((*range(1, 13), 15, 17), 17),
        ((2,), 2),
        ((3,), 3),
    ],
)
def test_the_deepest_that_keeps_is_found_past_a_bump(good: Sequence[int], expected: int) -> None:
    asked: list[int] = []

    def keeps(count: int) -> bool:
        asked.append(count)
        return count in good

    assert deepest(31, keeps) == expected
    assert len(asked) <= math.ceil(math.log2(32)) + 6
    assert set(asked) <= set(range(1, 32))


def test_ideal_speed_follows_from_the_share_of_the_layers() -> None:
    assert ideal_speedup(0.8, 5, 10) == pytest.approx(1 / 0.6)
    assert fewest_for_speed(1.6, 0.8, 10, 9) == 5
    assert fewest_for_speed(1.0001, 0.8, 10, 9) == 1
    with pytest.raises(TargetUnreachable, match=r"Give 3\.571 or less") as caught:
        fewest_for_speed(3.6, 0.8, 10, 9)
    assert caught.value.loc == ("target", "min_speedup")
    assert fewest_for_speed(3.571, 0.8, 10, 9) == 9
    with pytest.raises(TargetUnreachable, match=r"Without 2 of 10 layers, as many as can .* Give 1\.19 or less"):
        fewest_for_speed(3.571, 0.8, 10, 2)
    with pytest.raises(TargetUnreachable, match=r"Name the number of layers instead\.$"):
        fewest_for_speed(1.2, 0.001, 4, 1)


# Plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_tells_what_the_layers_cost(spec: JobSpec, tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    found = plan(
        spec.model_copy(
            update={
                "layers_to_remove": 2,
                "calibration": CalibrationSpec(source=spec.calibration.source, sequence_length=WINDOW, samples=50),
            }
        )
    )
    stream = torch.tensor(tiny_tokenizer(Path(spec.calibration.source).read_text())["input_ids"] + [0])
    order = torch.randperm(62, generator=torch.Generator().manual_seed(0))
    windows = stream[: 62 * WINDOW].view(62, WINDOW)[order[50:]]
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    with bypassed(model, removed(found)):
        after = quality(model, windows, 1.0).perplexity
    expected = found.expected
    assert (expected.layers, expected.sequences, expected.kept_apart) == (2, 12, True)
    assert expected.perplexity_before == pytest.approx(quality(model, windows, 1.0).perplexity)
    assert expected.perplexity_after == pytest.approx(after)
    assert expected.decode_speedup is None


def test_where_all_of_the_text_is_learnt_from_the_plan_says_so(spec: JobSpec) -> None:
    expected = plan(spec.model_copy(update={"layers": (1,)})).expected
    assert (expected.sequences, expected.kept_apart) == (32, False)


def test_a_plan_has_the_ideal_speed_where_speed_is_measured(spec: JobSpec) -> None:
    evaluation = spec.evaluation.model_copy(update={"speed": True})
    expected = plan(spec.model_copy(update={"layers": (1,), "evaluation": evaluation})).expected
    assert expected.decode_speedup is not None
    assert expected.decode_speedup > 1


@pytest.mark.parametrize("parameters", [ReplaceMeParameters(), PruneCompParameters()])
def test_a_plan_expects_what_the_method_does_at_once(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: MethodParameters
) -> None:
    """It is what the job then comes to, where nothing is trained."""
    monkeypatch.setattr(depth, "MOST_APART", 4)
    output = OutputSpec(dtype=Precision.FLOAT32)
    spec = spec.model_copy(update={"method": parameters, "layers": (1, 2), "output": output})
    found, report = plan(spec), run(spec, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model", dtype=torch.float32)
    windows: list[torch.Tensor] = []
    measure = depth.quality

    def seen(model: PreTrainedModel, text: torch.Tensor, *given: Any, **named: Any) -> Quality:
        windows.append(text)
        return measure(model, text, *given, **named)

    monkeypatch.setattr(depth, "quality", seen)
    plan(spec)
    assert removed(found) == report.removed_layers
    assert quality(model, windows[-1], 1.0).perplexity == pytest.approx(found.expected.perplexity_after, rel=1e-4)
    bypassing = AutoModelForCausalLM.from_pretrained(spec.model.id, dtype=torch.float32)
    with bypassed(bypassing, report.removed_layers):
        plain = quality(bypassing, windows[-1], 1.0).perplexity
    assert abs(plain / found.expected.perplexity_after - 1) > 5e-3


# Targets -----------------------------------------------------------------------------------------------------------


class EveryOther(Last):
    """Learns once for all depths."""

    asked: ClassVar[list[list[int]]] = []

    def chooser(self, context: Context, counts: Sequence[int]) -> Chooser:
        self.asked.append(list(counts))
        return partial(super().select, context)

    def select(self, context: Context, count: int) -> Selection:
        raise AssertionError("learnt again")


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perplexity is 100 and grows by 10 with every layer, but the third costs nothing: a bump at two."""
    found = {0: 100.0, 1: 110.0, 2: 140.0, 3: 130.0, 4: 140.5, 5: 150.0}
    monkeypatch.setattr(depth._Scale, "_perplexity", lambda _, layers: found[len(layers)])


@pytest.mark.usefixtures("growing")
@pytest.mark.parametrize(
    ("allowed", "layers", "tried"),
    [(0.31, 3, [3, 4, 5]), (0.51, 5, [3, 4, 5]), (0.11, 1, [1, 2, 3, 4]), (0.41, 4, [3, 4, 5])],
)
def test_the_most_layers_within_a_perplexity(spec: JobSpec, allowed: float, layers: int, tried: list[int]) -> None:
    found = plan(aimed(spec, max_perplexity_increase=allowed))
    assert found.expected.layers == len(removed(found)) == layers
    assert [trial.layers for trial in found.expected.tried] == tried
    assert (found.expected.sequences, found.expected.kept_apart) == (3, True)  # one in 16 of 62


@pytest.mark.parametrize("method", [ShortGpt, EveryOther])
def test_a_method_that_learns_once_is_asked_once(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch, method: type[Method]
) -> None:
    EveryOther.asked.clear()
    monkeypatch.setattr("elder_core.job.Job.method", lambda job: method(job.spec.method))
    found = plan(aimed(spec, max_perplexity_increase=1000))
    assert found.expected.layers == LAYERS - 1
    assert EveryOther.asked == ([] if method is ShortGpt else [[1, 2, 3, 4, 5]])


@pytest.mark.usefixtures("growing")
def test_a_perplexity_that_no_depth_keeps_is_refused_with_the_least(spec: JobSpec) -> None:
    with pytest.raises(TargetUnreachable, match=r"is 0\.1001, without 1 of 6 layers") as caught:
        plan(aimed(spec, max_perplexity_increase=0.05))
    assert caught.value.loc == ("target", "max_perplexity_increase")


def test_the_limit_that_a_refusal_names_can_be_given() -> None:
    for value in (0.123449, 0.3, 12.34567, 0.00012345678):
        assert value <= depth._ceil(value) <= value * 1.001


def test_bytes_decide_before_the_model_is_loaded(spec: JobSpec, tmp_path: Path) -> None:
    size = plan(spec.model_copy(update={"layers_to_remove": 2})).expected.bytes_on_disk
    report = run(aimed(spec, max_bytes=size), tmp_path / "out")
    assert len(report.removed_layers) == 2
    assert report.evaluation.after.bytes_on_disk == size
    assert report.warnings == ()
    for target, error in ((1000, TargetUnreachable), (10**9, TargetAlreadyMet)):
        seen: list[Stage] = []
        with pytest.raises(error):
            pipeline.plan(
                aimed(spec, max_bytes=target),
                sources=SOURCES,
                device="cpu",
                progress=lambda point, seen=seen: seen.append(point.stage),  # type: ignore[misc]
            )
        assert set(seen) == {Stage.RESOLVING}


def test_speed_decides_by_the_share_of_the_layers(spec: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "layers_share", lambda *_, **__: 0.6)
    found = plan(aimed(spec, min_speedup=1.25))
    assert found.expected.layers == 2
    assert found.expected.decode_speedup == pytest.approx(1.25)
    with pytest.raises(TargetUnreachable):
        plan(aimed(spec, min_speedup=2.1))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"max_bytes": 1}, "single layer left"),
        ({"max_bytes": None}, "No more than 4 layers .* up to .* Give [0-9,]+ or more"),
        ({"min_speedup": 4.5}, "Without 4 of 6 layers, as many as can be removed"),
        ({"max_perplexity_increase": 1000}, None),
    ],
)
def test_targets_of_models_that_need_some_of_their_layers(
    spec: JobSpec,
    tmp_path: Path,
    make_tiny: Any,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    target: dict[str, Any],
    message: str | None,
) -> None:
    monkeypatch.setattr(depth, "layers_share", lambda *_, **__: 0.9)
    make_tiny("olmo_hybrid").save_pretrained(tmp_path / "hybrid")
    tiny_tokenizer.save_pretrained(tmp_path / "hybrid")
    spec = spec.model_copy(update={"model": ModelRef(id=str(tmp_path / "hybrid"))})
    if target == {"max_bytes": None}:
        four = plan(spec.model_copy(update={"layers_to_remove": 4})).expected
        target = {"max_bytes": four.bytes_on_disk - 2000}
    if message is None:
        assert plan(aimed(spec, **target)).expected.layers == 4
        return
    with pytest.raises(TargetUnreachable, match=message) as caught:
        plan(aimed(spec, **target))
    assert caught.value.loc == ("target", next(iter(target)))


def test_a_model_that_needs_all_of_its_layers_meets_no_target(spec: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "most_removable", lambda _: 0)
    with pytest.raises(TargetUnreachable, match="No layer can be removed from this llama model of 6"):
        plan(aimed(spec, max_perplexity_increase=0.1))


def test_a_limit_that_is_named_can_be_given(spec: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth._Scale, "_perplexity", lambda _, layers: 1e9 if tuple(layers) else 1.0)
    with pytest.raises(TargetUnreachable, match=r"of 6 layers\. Name the number of layers, since training"):
        plan(aimed(spec, max_perplexity_increase=0.1))


def test_a_run_records_what_it_chose(spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "layers_share", lambda *_, **__: 0.6)
    report = run(aimed(spec, min_speedup=1.2), tmp_path / "a")
    assert report.expected is not None
    assert report.expected.layers == len(report.removed_layers) == 2
    assert any("evaluation.speed is off" in warning for warning in report.warnings)
    written = (tmp_path / "a/report.html").read_text()
    assert "at least 1.2 times as fast" in written
    assert "2 layers: perplexity" in written


@pytest.mark.usefixtures("growing")
def test_a_run_removes_what_its_plan_says(spec: JobSpec, tmp_path: Path) -> None:
    planned = plan(aimed(spec, max_perplexity_increase=0.31))
    report = run(aimed(spec, max_perplexity_increase=0.31), tmp_path / "out")
    assert report.removed_layers == removed(planned)
    assert report.expected == planned.expected


def test_a_depth_without_numbers_does_not_keep(spec: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def perplexity(_: Any, layers: Sequence[int]) -> float:
        if len(layers) > 2:
            raise NonFiniteLoss("no number")
        return 100.0

    monkeypatch.setattr(depth._Scale, "_perplexity", perplexity)
    found = plan(aimed(spec, max_perplexity_increase=0.1)).expected
    assert found.layers == 2
    assert {trial.layers for trial in found.tried if trial.perplexity is None} == {3, 4, 5}


def test_nothing_is_measured_twice_where_no_target_is_given(spec: JobSpec, tmp_path: Path) -> None:
    assert run(spec.model_copy(update={"layers": (1,)}), tmp_path / "out").expected is None
