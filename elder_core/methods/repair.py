"""How well a model could do without some layers, told without training it: by what linear maps make up for.

Right after removal a model suffers most from what is easily learnt again: the hidden state has another scale, a mean
is missing, directions are mixed. Some layers do little else, and then loss before training is no guide to loss after
it. So each gap gets the best linear map by least squares, as does the end of the stack, and what is left of the error
in the last hidden state is what the layers that stay would have to learn anew. Among sets of layers it predicts the
order after training, where the loss does not; docs/log.md has the figures.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.devices import autocast
from elder_core.gates import Hook, hooked
from elder_core.methods.blocks import boundary_states
from elder_core.methods.mathematics import SMALLEST, ridge_map
from elder_core.surgery import bypassed, decoder_layers

RIDGE = 0.01  # see ridge_map: it pulls a map towards the identity
MEASURED_SHARE = 0.25  # of the sequences; the maps are fitted on the others

Layers = frozenset[int]


class Repair:
    """Errors of sets of layers on token ids `[batch, seq]`, a quarter of which measures what the others fit.

    Memory: up to two hidden states `[batch, seq, hidden]` for every layer, those of the whole model and those of the
    set last given to `begin_like`. The weights must not change meanwhile.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor) -> None:
        self._model = model
        self._ids = ids
        self._layers = decoder_layers(model)
        self._measured = max(1, round(MEASURED_SHARE * len(ids)))
        self._whole = boundary_states(model, ids)[1:]  # what leaves each layer
        self._like: Layers = frozenset()
        self._leaving = dict(enumerate(self._whole))

    def begin_like(self, removed: Collection[int]) -> None:
        """Compute the model without `removed`, so that sets that begin like it need less from now on."""
        if self._like != frozenset(removed):
            leaving: dict[int, Tensor] = {}
            self._error(frozenset(removed), leaving)
            self._like, self._leaving = frozenset(removed), leaving

    def error(self, removed: Collection[int]) -> float:
        """Mean over tokens of ‖h − h'‖² / ‖h‖², h being the whole model's last hidden state, before the final norm.

        h' is that of the model without `removed`, where a linear map follows each run of removed layers, fitted to
        the whole model's hidden state there, and one more the last layer.
        """
        return self._error(frozenset(removed), {})

    @torch.no_grad()
    def _error(self, removed: Layers, leaving: dict[int, Tensor]) -> float:
        """See `error`. What leaves each layer that is computed, before it is mapped, is put into `leaving`."""
        last = len(self._layers) - 1
        first = min(self._like ^ removed, default=last + 1)
        error: list[float] = []

        def change(layer: int, _: Tensor, y: Tensor) -> Tensor | None:
            state = leaving[layer] = self._leaving[layer] if layer < first else y
            if layer == last:
                error.append(self._error_after_map(state, self._whole[layer]))
            elif layer in removed and layer + 1 not in removed:
                return self._mapped(state, self._whole[layer])
            return state

        hooks: dict[int, Hook] = {layer: partial(change, layer) for layer in range(max(first - 1, 0), last + 1)}
        skipped = removed | frozenset(range(min(first, last + 1)))
        with hooked(self._layers, hooks), bypassed(self._model, skipped), autocast(self._ids.device):
            self._model(input_ids=self._ids, use_cache=False, logits_to_keep=1)
        for layer in range(first - 1):
            leaving[layer] = self._leaving[layer]
        return error[0]

    def _mapped(self, state: Tensor, wanted: Tensor) -> Tensor:
        """`state` `[batch, seq, hidden]` times the matrix that brings its fitted part nearest to `wanted`."""
        with torch.autocast(state.device.type, enabled=False):
            x, y = state.float(), wanted.float()
            fitted = slice(self._measured, None) if len(x) > self._measured else slice(None)
            change = _change(x[fitted].flatten(0, 1), y[fitted].flatten(0, 1))
            return (x + x @ change).to(state.dtype)

    def _error_after_map(self, state: Tensor, wanted: Tensor) -> float:
        mapped = self._mapped(state, wanted)[: self._measured].float()
        y = wanted[: self._measured].float()
        distance = (mapped - y).square().sum(-1) / y.square().sum(-1).clamp(min=SMALLEST)
        return distance.mean().item()


def _change(x: Tensor, y: Tensor) -> Tensor:
    """The D `[hidden, hidden]` for which x + x·D is nearest to y, both `[tokens, hidden]`; every token counts alike.

    Without that, the first token would decide: its norm is often hundreds of times the others'.
    """
    scale = torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp(min=SMALLEST)
    x, missing = x / scale, (y - x) / scale
    return ridge_map((x.T @ x).double(), (x.T @ missing).double(), RIDGE).float()
