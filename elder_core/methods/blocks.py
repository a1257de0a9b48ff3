"""Blocks of neighbouring layers, judged by how far the hidden state moves across them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.devices import autocast
from elder_core.gates import observed
from elder_core.methods.base import Selection
from elder_core.methods.baseline import require_numbers
from elder_core.surgery import decoder_layers

Keep = Callable[[Tensor], Tensor]
"""From a hidden state `[batch, seq, hidden]` to what is kept of it."""


@torch.no_grad()
def boundary_states(model: PreTrainedModel, ids: Tensor, keep: Keep = lambda state: state) -> list[Tensor]:
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
