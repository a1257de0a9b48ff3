"""Prune&Comp (arXiv 2507.18212): remove layers of least block influence, and make up for the magnitude they added.

Layers make the hidden state grow. Without one of them, the later layers' additions weigh too much against a state that
stayed small by some factor α. The paper multiplies that state by α, in the embedding and in the outputs of all earlier
layers. Here the outputs of all later layers are divided by α instead: the state is then 1 / α of the paper's from the
removed layer on, and since layers and head read it through norms, which cancel a common factor (but for their ε), the
model says the same. This way embeddings stay as they are, which are often the output head's weights too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from elder_core.devices import autocast
from elder_core.gates import observed
from elder_core.methods.base import Chooser, Context, Selection
from elder_core.methods.baseline import SharingBaseline, require_numbers
from elder_core.methods.mathematics import block_influence, magnitude_ratio
from elder_core.parameters import PruneCompParameters
from elder_core.stream import outputs_scaled, require_plain_stream, scale_output, writers
from elder_core.surgery import bypassed, decoder_layers

Measured = dict[tuple[int, ...], tuple[Tensor, Tensor]]
"""By the layers removed, in their order: block influence and magnitude ratio of every layer, both `[layers]`."""


class PruneComp(SharingBaseline[PruneCompParameters]):
    """In rounds: measure the pruned and compensated model, remove the least influential layers, compensate for them."""

    def __init__(self, parameters: PruneCompParameters) -> None:
        super().__init__(parameters)
        self._scales: dict[frozenset[int], Tensor] = {}  # of the sets that were chosen

    def chooser(self, context: Context, counts: Sequence[int]) -> Chooser:
        """A deeper selection is measured where its rounds remove others than a shallower one's."""
        measured: Measured = {}

        def in_rounds(count: int) -> Selection:
            every_layer = range(len(decoder_layers(context.model)))
            removed, weights, scales = self._rounds(context, every_layer, count, measured)
            self._scales[frozenset(removed)] = scales
            label = "block influence, when last measured"
            return Selection(tuple(sorted(removed)), tuple(weights.tolist()), label)

        return cache(in_rounds)

    def compensate(self, context: Context, removed: tuple[int, ...]) -> None:
        """Scale what the later layers add, as the rounds of `select` found it, or would have.

        With no other candidates they go as they did there.
        """
        scales = self._scales.get(frozenset(removed))
        if scales is None:
            _, _, scales = self._rounds(context, removed, len(removed), {})
        for layer, scale in enumerate(scales.tolist()):
            if layer not in removed and scale != 1:
                for module in writers(context.model, layer):
                    scale_output(module, scale)

    def _rounds(
        self, context: Context, candidates: Sequence[int], count: int, measured: Measured
    ) -> tuple[list[int], Tensor, Tensor]:
        """The `count` layers chosen from `candidates`; block influence, and scale of what it adds, of every layer.

        Both `[layers]`. The model is only hooked. `measured` is what is known already, and learns what is not.
        """
        require_plain_stream(context.model)
        layers = len(decoder_layers(context.model))
        per_round = self.parameters.layers_per_round or count
        passes = -(-count // per_round)
        removed: list[int] = []
        weights, scales = torch.zeros(layers), torch.ones(layers)
        for number in range(passes):
            if (gone := tuple(removed)) not in measured:
                measured[gone] = self._measure(context, removed, scales, number, passes)
            influences, ratios = measured[gone]
            active = [layer for layer in range(layers) if layer not in removed]
            weights[active] = influences[active].float()
            left = sorted(set(candidates) - set(removed), key=lambda layer: (influences[layer].item(), layer))
            for layer in left[: min(per_round, count - len(removed))]:
                removed.append(layer)
                scales[layer + 1 :] /= float(ratios[layer])
        return removed, weights, scales

    def _measure(
        self, context: Context, removed: Sequence[int], scales: Tensor, number: int, passes: int
    ) -> tuple[Tensor, Tensor]:
        """Block influence and magnitude ratio `[layers]` in the model without `removed`, additions times `scales`."""
        layers = decoder_layers(context.model)
        with (
            bypassed(context.model, removed),
            outputs_scaled(context.model, scales.tolist()),
            observed(layers, _influence_and_ratio, range(len(layers))) as seen,
        ):

            def measured(batch: Tensor) -> Tensor:
                with torch.no_grad(), autocast(context.device):
                    context.model(input_ids=batch, use_cache=False, logits_to_keep=1)
                return torch.stack([seen[layer] for layer in range(len(layers))], dim=1)

            influences, ratios = self.mean_over_windows(context, measured, number=number, passes=passes)
        require_numbers(influences.tolist())
        return influences, ratios


def _influence_and_ratio(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([block_influence(x, y), magnitude_ratio(x, y)])
