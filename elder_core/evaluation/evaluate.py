"""Before and after: everything that is measured of a model and its pruned version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from elder_core.devices import out_of_memory_named
from elder_core.errors import MeasurementFailed, OutOfMemory
from elder_core.evaluation.generation import continuations, prompts_from
from elder_core.evaluation.memory import peak_memory
from elder_core.evaluation.quality import quality
from elder_core.evaluation.single import Load, measurement
from elder_core.evaluation.speed import SpeedComparison, Workload, compare_speed, time_alone
from elder_core.monitor import Monitor
from elder_core.spec import Evaluation, EvaluationSpec, Generation, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Figures:
    """What of one model does not depend on the moment; of the unpruned one it serves for several pruned ones.

    `texts` are what it writes after each prompt. The measurement has no speed; its peak memory is None where it is not
    wanted or not known.
    """

    measurement: Measurement
    tokens: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationResult:
    evaluation: Evaluation
    generations: tuple[Generation, ...]
    dense: Figures


class _Meter:
    """Turns the progress of each part into that of the whole stage; a part's `units` are about its cost."""

    def __init__(self, total: int, monitor: Monitor) -> None:
        self.metrics: dict[str, float] = {}
        self._total = total
        self._monitor = monitor
        self._done = 0

    def part(self, units: int) -> Callable[[float], None]:
        """Begin the next part; call the result with the share of it that is done."""
        start, self._done = self._done, self._done + units

        def tick(share: float) -> None:
            self._monitor.step(start + round(share * units), self._total, **self.metrics)

        return tick


def evaluate(
    load_dense: Load,
    load_pruned: Load,
    tokenizer: PreTrainedTokenizerBase,
    *,
    spec: EvaluationSpec,
    windows: torch.Tensor,
    bytes_per_token: float,
    removed: Sequence[int],
    work: Workload,
    dense_path: Path,
    pruned_path: Path,
    monitor: Monitor,
    known: Figures | None = None,
) -> EvaluationResult:
    """Measure the dense and the pruned model as `spec` says.

    Both are loaded in eval mode, on one device and in one number type. `windows` `[n, seq]` are tokens of text that
    calibration never saw, all of which are used; `bytes_per_token` is that text's UTF-8 bytes over its tokens.
    `removed` are the removed layers by their place in the dense model, `work` is what speed and memory are measured at.
    The folders are the models' saved forms: their size is taken, and their memory measured in fresh processes before
    either is loaded here. Memory that cannot be measured is left out with a warning: it is no reason to lose the
    training that came before. `known` is what an earlier call with the same `spec` and text found of the same dense
    model; it is not measured again. Speeds always are. In a run that goes on from its journal the same holds for
    perplexity.

    The models are loaded one after the other, and once more to be timed: together and in turns. Where a CUDA device has
    no room for both, each is timed alone, with a warning.

    Raises:
        NonFiniteLoss: the predictions of a model are not numbers.
        Cancelled: the caller ended the run.
    """
    meter = _Meter((1 if known else 2) * (40 + 5 * spec.generation + 10 * spec.speed) + 30 * spec.speed, monitor)
    prompts = (spec.prompts or prompts_from(windows, tokenizer)) if spec.generation else ()

    def peak(path: Path) -> int | None:
        return _memory(path, work, meter.part(10), monitor) if spec.speed else None

    def look(load: Load, path: Path, when: str, peak_bytes: int | None) -> Figures:
        model, tick = load(), meter.part(40)
        found = quality(model, windows, bytes_per_token, tick=tick, page=monitor.page(when))
        meter.metrics[f"perplexity_{when}"] = found.perplexity
        tick(1.0)
        texts = continuations(model, tokenizer, prompts, tick=meter.part(5 * spec.generation))
        return Figures(measurement(model, path, found, peak_bytes), found.tokens, texts)

    dense_peak, pruned_peak = None if known else peak(dense_path), peak(pruned_path)
    dense = known or look(load_dense, dense_path, "before", dense_peak)
    meter.metrics["perplexity_before"] = dense.measurement.perplexity
    pruned = look(load_pruned, pruned_path, "after", pruned_peak)
    before, after, ideal = dense.measurement, pruned.measurement, None
    if spec.speed:
        speed = _speeds(load_dense, load_pruned, removed, work, meter.part(30), monitor)
        before = before.model_copy(update=asdict(speed.before))
        after = after.model_copy(update=asdict(speed.after))
        ideal = speed.ideal
    evaluation = Evaluation(
        source=spec.source,
        sequences=windows.shape[0],
        sequence_length=windows.shape[1],
        tokens=dense.tokens,
        before=before,
        after=after,
        ratios=ratios(before, after),
        ideal=ideal,
    )
    generations = tuple(
        Generation(prompt=prompt, before=old, after=new)
        for prompt, old, new in zip(prompts, dense.texts, pruned.texts, strict=True)
    )
    return EvaluationResult(evaluation, generations, dense)


def ratios(before: Measurement, after: Measurement) -> dict[str, float]:
    """After / before of every field that both have and that is not 0 before."""
    old, new = before.model_dump(exclude_none=True), after.model_dump(exclude_none=True)
    return {name: new[name] / old[name] for name in old if name in new and old[name]}


def _speeds(
    load_dense: Load,
    load_pruned: Load,
    removed: Sequence[int],
    work: Workload,
    tick: Callable[[float], None],
    monitor: Monitor,
) -> SpeedComparison:
    """Of both models in turns, or of one after the other where they do not fit the device together."""
    try:
        with out_of_memory_named():
            return compare_speed(load_dense(), load_pruned(), removed, work, tick=tick)
    except OutOfMemory:
        monitor.warn(
            "The dense and the pruned model do not fit the device together: their speeds were measured one after the "
            "other instead of in turns, and compare less well."
        )
    before, ideal = time_alone(load_dense(), removed, work, tick=lambda share: tick(share / 2))
    after, _ = time_alone(load_pruned(), (), work, tick=lambda share: tick((1 + share) / 2))
    return SpeedComparison(before, after, ideal)


def _memory(path: Path, work: Workload, tick: Callable[[float], None], monitor: Monitor) -> int | None:
    used = None
    try:
        used = peak_memory(path, work.prompt.device, work.prompt[0].tolist(), check_cancelled=monitor.check_cancelled)
    except (MeasurementFailed, OutOfMemory) as error:
        monitor.warn(f"Peak memory is not known: {error.message}")
    tick(1.0)
    return used
