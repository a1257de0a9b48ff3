from __future__ import annotations

import weakref
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from elder_core.errors import Cancelled, ElderError, MeasurementFailed, OutOfMemory
from elder_core.evaluation import decoding, speed
from elder_core.evaluation import environment as environment_module
from elder_core.evaluation import evaluate as module
from elder_core.evaluation.environment import environment
from elder_core.evaluation.evaluate import EvaluationResult, evaluate, ratios
from elder_core.monitor import Monitor
from elder_core.spec import EvaluationSpec, Measurement, Progress, Stage
from elder_core.surgery import decoder_layers, remove_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

REMOVED = (1, 4)


class Device:
    """Has room for `fitting` models at a time."""

    def __init__(self, fitting: int) -> None:
        self._fitting = fitting
        self.there: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()

    def load(self, model: PreTrainedModel) -> PreTrainedModel:
        if len(self.there) == self._fitting:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        copy = deepcopy(model)
        self.there.add(copy)
        return copy


@pytest.fixture
def measured(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """`measured(spec, monitor)` evaluates a tiny model less two layers, without the memory's own process."""
    monkeypatch.setattr(speed, "FEWEST_ROUNDS", 1)
    monkeypatch.setattr(speed, "MOST_ROUNDS", 1)
    monkeypatch.setattr(module, "peak_memory", lambda path, *_, **__: 1000 if path == tiny_checkpoint else 700)
    pruned = deepcopy(tiny_llama)
    remove_layers(pruned, REMOVED)
    pruned.save_pretrained(tmp_path)
    windows = torch.randint(1, 257, (4, 24), generator=torch.Generator().manual_seed(1))

    def run(spec: EvaluationSpec, monitor: Monitor | None = None, *, fitting: int = 2) -> EvaluationResult:
        monitor = monitor or Monitor()
        monitor.stage = Stage.EVALUATING
        device = run.device = Device(fitting)  # type: ignore[attr-defined]
        return evaluate(
            lambda: device.load(tiny_llama),
            lambda: device.load(pruned),
            tiny_tokenizer,
            spec=spec,
            windows=windows,
            bytes_per_token=1.0,
            removed=REMOVED,
            work=speed.workload(windows, limit=64, device=torch.device("cpu")),
            dense_path=tiny_checkpoint,
            pruned_path=tmp_path,
            monitor=monitor,
        )

    return run


def test_everything_is_measured_by_default(measured: Any) -> None:
    found = measured(EvaluationSpec())

    assert (found.evaluation.before.layers, found.evaluation.after.layers) == (6, 4)
    assert (found.evaluation.sequences, found.evaluation.sequence_length, found.evaluation.tokens) == (4, 24, 4 * 23)
    assert set(found.evaluation.ratios) == set(Measurement.model_fields)
    assert found.evaluation.ratios["peak_memory_bytes"] == 0.7
    assert found.evaluation.ratios["parameters"] < 1
    assert found.evaluation.ideal is not None
    assert len(found.generations) == 3


def test_what_is_not_asked_for_is_left_out(measured: Any) -> None:
    found = measured(EvaluationSpec(speed=False, generation=False))

    assert found.evaluation.before.decode_tokens_per_second is None
    assert found.evaluation.before.peak_memory_bytes is None
    assert found.evaluation.ideal is None
    assert found.generations == ()
    assert set(found.evaluation.ratios) == {"layers", "parameters", "bytes_on_disk", "perplexity", "bits_per_byte"}


def test_prompts_of_the_spec_are_used(measured: Any) -> None:
    found = measured(EvaluationSpec(speed=False, prompts=("hello",)))

    assert [one.prompt for one in found.generations] == ["hello"]


@pytest.mark.parametrize("fitting", [1, 2])
@pytest.mark.parametrize("spec", [EvaluationSpec(), EvaluationSpec(speed=False, generation=False)])
def test_progress_grows_to_its_total(measured: Any, spec: EvaluationSpec, fitting: int) -> None:
    seen: list[Progress] = []
    measured(spec, Monitor(seen.append), fitting=fitting)

    steps = [one.step for one in seen]
    assert steps == sorted(steps)
    assert steps[-1] == seen[-1].total
    assert {one.stage for one in seen} == {Stage.EVALUATING}
    assert seen[-1].metrics.keys() == {"perplexity_before", "perplexity_after"}


@pytest.mark.parametrize("error", [MeasurementFailed("it fell over"), OutOfMemory("too little")])
def test_memory_that_cannot_be_measured_is_left_out(
    measured: Any, error: ElderError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> int:
        raise error

    monkeypatch.setattr(module, "peak_memory", fail)
    monitor = Monitor()
    found = measured(EvaluationSpec(generation=False), monitor)

    assert found.evaluation.before.peak_memory_bytes is None
    assert found.evaluation.before.decode_tokens_per_second is not None
    assert monitor.warnings == [f"Peak memory is not known: {error.message}"]


def test_models_that_do_not_fit_together_are_timed_one_after_the_other(measured: Any) -> None:
    together, apart = Monitor(), Monitor()
    expected, found = measured(EvaluationSpec(), together), measured(EvaluationSpec(), apart, fitting=1)

    assert together.warnings == []
    assert len(apart.warnings) == 1
    assert "do not fit the device together" in apart.warnings[0]
    assert set(found.evaluation.ratios) == set(Measurement.model_fields)
    assert found.evaluation.before.decode_tokens_per_second is not None
    assert found.evaluation.ideal is not None
    assert found.evaluation.ideal.decode_speedup > 1
    assert found.generations == expected.generations
    assert found.evaluation.after.perplexity == expected.evaluation.after.perplexity


def test_memory_that_runs_out_while_both_are_timed_is_given_back_first(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a step, where the traceback holds on to both models."""
    step = decoding.step
    there: list[int] = []

    def failing(model: PreTrainedModel, *given: Any) -> Any:
        there.append(len(measured.device.there))
        if there[-1] > 1 and len(decoder_layers(model)) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return step(model, *given)

    monkeypatch.setattr(decoding, "step", failing)
    monitor = Monitor()
    found = measured(EvaluationSpec(generation=False), monitor)

    assert len(monitor.warnings) == 1
    assert there[0] == 2
    assert there[-1] == 1
    assert found.evaluation.after.decode_tokens_per_second is not None


def test_one_model_is_there_at_a_time_where_speed_is_not_asked_for(measured: Any) -> None:
    monitor = Monitor()
    measured(EvaluationSpec(speed=False), monitor, fitting=1)

    assert monitor.warnings == []


def test_a_model_that_does_not_fit_by_itself_ends_the_run(measured: Any) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        measured(EvaluationSpec(), fitting=0)


def test_can_be_cancelled(measured: Any) -> None:
    with pytest.raises(Cancelled):
        measured(EvaluationSpec(), Monitor(cancelled=lambda: True))


def test_ratios_are_after_over_before_of_what_both_have() -> None:
    common: dict[str, Any] = {"layers": 4, "parameters": 100, "bytes_on_disk": 0, "bits_per_byte": 2.0}
    before = Measurement(**common, perplexity=10.0, peak_memory_bytes=5)
    after = Measurement(**common, perplexity=15.0)

    assert ratios(before, after) == {"layers": 1, "parameters": 1, "bits_per_byte": 1, "perplexity": 1.5}


def test_environment_names_machine_and_versions() -> None:
    found = environment("cpu")

    assert found.device == "cpu"
    assert found.cpu
    assert found.threads == torch.get_num_threads()
    assert found.versions.keys() == {"elder", "python", "torch", "transformers"}
    assert found.versions["torch"].startswith("2.")


@pytest.mark.parametrize(
    ("content", "expected"),
    [("processor : 0\nmodel name : Fast CPU @ 3 GHz\nmodel name : other\n", "Fast CPU @ 3 GHz"), ("", None)],
)
def test_name_of_the_processor(
    content: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(content, encoding="utf-8")
    monkeypatch.setattr(environment_module, "CPUINFO", tmp_path / "cpuinfo")

    assert environment("cpu").cpu == expected or (expected is None and environment("cpu").cpu)
