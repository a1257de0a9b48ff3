"""Before and after: everything that is measured of a model and its pruned version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from elder_core.errors import MeasurementFailed, OutOfMemory
from elder_core.evaluation.generation import generations, prompts_from
from elder_core.evaluation.memory import peak_memory
from elder_core.evaluation.quality import Quality, quality
from elder_core.evaluation.speed import Speed, Workload, compare_speed
from elder_core.monitor import Monitor
from elder_core.spec import Evaluation, EvaluationSpec, Generation, Measurement
from elder_core.surgery import decoder_layers
from elder_core.weight_files import checkpoint_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class DenseFigures:
    """What of the unpruned model alone need be measured only once for several pruned ones."""

    quality: Quality
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class EvaluationResult:
    evaluation: Evaluation
    generations: tuple[Generation, ...]
    dense: DenseFigures


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
    load_pair: Callable[[], tuple[PreTrainedModel, PreTrainedModel]],
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
    known: DenseFigures | None = None,
) -> EvaluationResult:
    """Measure the dense and the pruned model as `spec` says.

    `load_pair` gives both, in eval mode, on one device and in one number type. `windows` `[n, seq]` are tokens of
    text that calibration never saw, all of which are used; `bytes_per_token` is that text's UTF-8 bytes over its
    tokens. `removed` are the removed layers by their place in the dense model, `work` is what speed and memory are
    measured at. The folders are the models' saved forms: their size is taken, and their memory measured in fresh
    processes before either is loaded here, so that the device need hold only one. Memory that cannot be measured is
    left out with a warning: it is no reason to lose the training that came before. `known` is what an earlier call
    found of the same dense model on the same text; it is not measured again. Speeds always are, in turns. In a run that
    goes on from its journal the same holds for perplexity.

    Raises:
        NonFiniteLoss: the predictions of a model are not numbers.
        Cancelled: the caller ended the run.
    """
    total = (30 if known else 70) + (40 if known else 50) * spec.speed + 10 * spec.generation
    meter = _Meter(total, monitor)
    measure = partial(_memory, work=work, meter=meter, monitor=monitor)
    dense_peak = known.peak_memory_bytes if known else measure(dense_path) if spec.speed else None
    pruned_peak = measure(pruned_path) if spec.speed else None
    dense, pruned = load_pair()
    found = _quality(dense, pruned, windows, bytes_per_token, meter, known, monitor)
    before = _measurement(dense, dense_path, found[0])
    after = _measurement(pruned, pruned_path, found[1])
    ideal = None
    if spec.speed:
        speed = compare_speed(dense, pruned, removed, work, tick=meter.part(30))
        before, after = _with_costs(before, speed.before, dense_peak), _with_costs(after, speed.after, pruned_peak)
        ideal = speed.ideal
    texts: tuple[Generation, ...] = ()
    if spec.generation:
        prompts = spec.prompts or prompts_from(windows, tokenizer)
        texts = generations(dense, pruned, tokenizer, prompts, tick=meter.part(10))
    evaluation = Evaluation(
        source=spec.source,
        sequences=windows.shape[0],
        sequence_length=windows.shape[1],
        tokens=found[0].tokens,
        before=before,
        after=after,
        ratios=ratios(before, after),
        ideal=ideal,
    )
    return EvaluationResult(evaluation, texts, DenseFigures(found[0], dense_peak))


def ratios(before: Measurement, after: Measurement) -> dict[str, float]:
    """After / before of every field that both have and that is not 0 before."""
    old, new = before.model_dump(exclude_none=True), after.model_dump(exclude_none=True)
    return {name: new[name] / old[name] for name in old if name in new and old[name]}


def _quality(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    windows: torch.Tensor,
    bytes_per_token: float,
    meter: _Meter,
    known: DenseFigures | None,
    monitor: Monitor,
) -> tuple[Quality, Quality]:
    """Of both models; the progress tells each as soon as it is known."""

    def of(model: PreTrainedModel, name: str, tick: Callable[[float], None]) -> Quality:
        return quality(model, windows, bytes_per_token, tick=tick, page=monitor.page(name))

    before = known.quality if known else of(dense, "dense", meter.part(40))
    meter.metrics["perplexity_before"] = before.perplexity
    tick = meter.part(30)
    after = of(pruned, "pruned", tick)
    meter.metrics["perplexity_after"] = after.perplexity
    tick(1.0)
    return before, after


def _measurement(model: PreTrainedModel, path: Path, found: Quality) -> Measurement:
    return Measurement(
        layers=len(decoder_layers(model)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes_on_disk=checkpoint_bytes(path),
        perplexity=found.perplexity,
        bits_per_byte=found.bits_per_byte,
    )


def _with_costs(measurement: Measurement, speed: Speed, peak_bytes: int | None) -> Measurement:
    return measurement.model_copy(update={**asdict(speed), "peak_memory_bytes": peak_bytes})


def _memory(path: Path, work: Workload, meter: _Meter, monitor: Monitor) -> int | None:
    tick = meter.part(10)
    used = None
    try:
        used = peak_memory(path, work.prompt.device, work.prompt[0].tolist(), check_cancelled=monitor.check_cancelled)
    except (MeasurementFailed, OutOfMemory) as error:
        monitor.warn(f"Peak memory is not known: {error.message}")
    tick(1.0)
    return used
