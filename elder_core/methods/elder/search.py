"""After stage 1: exchange chosen layers for others near the border while the model without them gets better."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from elder_core.methods.base import Context
from elder_core.methods.losses import Teacher, loss_between, teacher_of
from elder_core.methods.prefix import Prefix
from elder_core.parameters import ElderParameters, Loss

MOST_PASSES = 8
Layers = frozenset[int]


def refine(context: Context, parameters: ElderParameters, ranked: Sequence[int], count: int) -> Layers:
    """The first `count` of the layers `ranked` (most removable first), improved by the best exchange at a time.

    A learnt weight says what a layer is worth beside whole neighbours, not without the other chosen ones; the loss of
    the set itself does. Only the last chosen and the first not chosen are candidates, `search_width` of each, so that a
    pass costs at most its square of forward passes, each begun where the set first differs.

    Raises:
        Cancelled: the caller ended the run.
    """
    chosen = frozenset(ranked[:count])
    if not parameters.search_samples or not parameters.search_width:
        return chosen
    teacher = teacher_of(context.model) if parameters.gate_loss is Loss.KL else None
    known: dict[Layers, float] = {}
    for _ in range(MOST_PASSES):
        wanted = [chosen, *_exchanges(chosen, ranked, parameters.search_width)]
        missing = [layers for layers in wanted if layers not in known]
        known.update(zip(missing, _losses(context, parameters, chosen, missing, teacher), strict=True))
        best = min(wanted, key=lambda layers: (known[layers], sorted(layers)))
        if known[best] >= known[chosen]:
            return chosen
        chosen = best
    return chosen


def _exchanges(chosen: Layers, ranked: Sequence[int], width: int) -> list[Layers]:
    """Every set with one of the last `width` chosen exchanged for one of the first `width` that are not."""
    leaving = [layer for layer in ranked if layer in chosen][-width:]
    coming = [layer for layer in ranked if layer not in chosen][:width]
    return [chosen - {old} | {new} for old in leaving for new in coming]


def _losses(
    context: Context, parameters: ElderParameters, base: Layers, sets: Sequence[Layers], teacher: Teacher | None
) -> list[float]:
    """Mean loss of the model without each of `sets`; what they share with `base` at the beginning is computed once."""
    windows = context.windows[-parameters.search_samples :]
    total = torch.zeros(len(sets), dtype=torch.float64)
    for batch in torch.split(windows, parameters.search_batch_size):
        ids = batch.to(context.device)
        wanted = None if teacher is None else teacher(ids)
        prefix = Prefix(context.model, ids, base)
        for index, layers in enumerate(sets):
            loss = loss_between(prefix.logits(layers), ids, parameters.gate_loss, wanted)
            total[index] += loss.double().nan_to_num(math.inf).item() * len(batch) / len(windows)
            context.monitor.check_cancelled()
    found: list[float] = total.tolist()
    return found
