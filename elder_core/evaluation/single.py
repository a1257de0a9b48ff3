"""One model by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from elder_core.evaluation.memory import peak_memory
from elder_core.evaluation.quality import Quality, quality
from elder_core.evaluation.speed import Workload, time_alone
from elder_core.spec import Measurement, Progress, Stage
from elder_core.surgery import decoder_layers
from elder_core.weight_files import checkpoint_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Load = Callable[[], "PreTrainedModel"]

STEPS = 100  # a part of the progress


def evaluate_one(
    load: Load,
    *,
    path: Path,
    windows: torch.Tensor,
    bytes_per_token: float,
    work: Workload | None,
    progress: Callable[[Progress], None] = lambda _: None,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Measurement:
    """Measure the model that `load` loads from `path` on `windows` `[n, seq]`; speed and memory at `work`, if given.

    Memory comes first, in a process of its own, so that the device need hold the model once.

    Raises:
        NonFiniteLoss, OutOfMemory, MeasurementFailed: see each.
        Whatever `check_cancelled` raises.
    """
    total = STEPS * (2 if work else 1)

    def part(done: int) -> Callable[[float], None]:
        def tick(share: float) -> None:
            check_cancelled()
            progress(Progress(stage=Stage.EVALUATING, step=done + round(share * STEPS), total=total))

        return tick

    used = None
    if work is not None:
        used = peak_memory(path, work.prompt.device, work.prompt[0].tolist(), check_cancelled=check_cancelled)
    model = load()
    found = quality(model, windows, bytes_per_token, tick=part(0))
    whole = measurement(model, path, found, used)
    if work is None:
        return whole
    timed, _ = time_alone(model, (), work, tick=part(STEPS))
    return whole.model_copy(update=asdict(timed))


def measurement(model: PreTrainedModel, path: Path, found: Quality, peak_bytes: int | None) -> Measurement:
    """What is known of `model`, saved in `path`, without its speed."""
    return Measurement(
        layers=len(decoder_layers(model)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes_on_disk=checkpoint_bytes(path),
        perplexity=found.perplexity,
        bits_per_byte=found.bits_per_byte,
        peak_memory_bytes=peak_bytes,
    )
