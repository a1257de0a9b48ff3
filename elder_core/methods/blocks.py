"""Blocks of neighbouring layers, judged by how far the hidden state moves across them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.devices import autocast
from elder_core.gates import observed
from elder_core.methods.base import Chooser, Context, Selection
from elder_core.methods.baseline import S, ScoringBaseline, require_numbers
from elder_core.surgery import decoder_layers

Keep = Callable[[Tensor], Tensor]
"""From a hidden state `[batch, seq, hidden]` to what is kept of it."""


def _whole(state: Tensor) -> Tensor:
    return state


@torch.no_grad()
def boundary_states(model: PreTrainedModel, ids: Tensor, keep: Keep = _whole) -> list[Tensor]:
    """What is kept of the hidden states before the first layer, between layers and after the last: layers + 1 of them.

    `ids` `[batch, seq]`. Whole states of all layers are layers × batch × seq × hidden numbers.
    """
    layers = decoder_layers(model)
    last = [len(layers) - 1]
    with (
        observed(layers, lambda x, _: keep(x), range(len(layers))) as entering,
        observed(layers, lambda _, y: keep(y), last) as leaving,
        autocast(ids.device),
    ):
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return [*(entering[layer] for layer in range(len(layers))), leaving[last[0]]]


def block_distances(states: Sequence[Tensor], length: int, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean distance `[layers − length + 1]` across each block of `length` layers, by its first layer."""
    starts = range(len(states) - length)
    return torch.stack([distance(states[start], states[start + length]).mean() for start in starts])


def block_chooser(
    method: ScoringBaseline[S],
    context: Context,
    counts: Sequence[int],
    distance: Callable[[Tensor, Tensor], Tensor],
    label: str,
    *,
    keep: Keep = _whole,
    first: int = 0,
) -> Chooser:
    """`best_block` for any of `counts`, by the mean over the method's windows of all their blocks' distances.

    Raises:
        Cancelled: the caller ended the run. The chooser may raise NonFiniteLoss: see best_block.
    """
    layers, lengths = len(decoder_layers(context.model)), sorted(set(counts))

    def distances(batch: Tensor) -> Tensor:
        states = boundary_states(context.model, batch, keep)
        return torch.cat([block_distances(states, length, distance) for length in lengths])

    sizes = [layers - length + 1 for length in lengths]
    means = torch.split(method.mean_over_windows(context, distances), sizes)
    by_length = dict(zip(lengths, means, strict=True))
    return cache(lambda count: best_block(by_length[count].tolist(), count, label, first=first))


def best_block(distances: Sequence[float], length: int, label: str, *, first: int = 0) -> Selection:
    """The block of `length` layers of smallest distance that begins at `first` or later; the earliest among equals.

    A layer's weight is the smallest distance of all blocks that it is part of.

    Raises:
        NonFiniteLoss: a distance is no number.
    """
    require_numbers(distances)
    layers = len(distances) + length - 1
    weights = [min(distances[max(0, layer - length + 1) : layer + 1]) for layer in range(layers)]
    start = min(range(first, len(distances)), key=lambda start: (distances[start], start))
    return Selection(removed=tuple(range(start, start + length)), weights=tuple(weights), weight_label=label)
