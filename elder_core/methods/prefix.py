"""A model without some layers, for many sets of layers: what two sets have in common at the beginning is kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.devices import autocast
from elder_core.gates import observed, overridden
from elder_core.methods.losses import Teacher, leaving, logits_of
from elder_core.methods.mathematics import kl_divergence, next_token_cross_entropy
from elder_core.surgery import bypassed, decoder_layers

STRIDE = 4  # neighbours in a text tell nearly the same


class Prefix:
    """The model without the layers `removed` on one batch of token ids `[batch, seq]`, ready for other sets of layers.

    The hidden state that leaves each layer, `[batch, seq, hidden]`, is kept. Another set is then computed from the
    first layer on in which it differs from `removed`: the model's own forward pass runs, so that every layer gets its
    own mask and position embeddings whatever the architecture, but the layers before that one are skipped and the
    kept hidden state stands in for them.

    Memory: (layers − removed) × batch × seq × hidden numbers, so keep one batch's at a time; in bfloat16, 32 layers of
    width 4096 take 1 GB for 4,096 tokens. Nothing is kept for gradients. The weights must not change meanwhile.

    Raises:
        UnsupportedArchitecture, LayersOutOfRange: see elder_core.surgery.bypassed.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, ids: Tensor, removed: Collection[int] = ()) -> None:
        self._model = model
        self._ids = ids
        self._layers = decoder_layers(model)
        self.removed = frozenset(removed)
        with (
            observed(self._layers, leaving, range(len(self._layers))) as seen,
            bypassed(model, removed),
            autocast(ids.device),
        ):
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
        self._leaving = [seen[layer] for layer in range(len(self._layers))]

    @torch.no_grad()
    def logits(self, removed: Collection[int], positions: Tensor | None = None) -> Tensor:
        """Logits of the model without the layers `removed`, equal to those of `bypassed`; shapes as in `logits_of`.

        They cost the layers that stay from the first one on in which `removed` differs from the set of this object;
        for that set itself, only what comes after the layers.

        Raises:
            LayersOutOfRange: a layer does not exist.
        """
        first = min(self.removed.symmetric_difference(removed), default=len(self._layers))
        kept = {first - 1: self._leaving[first - 1]} if first > 0 else {}
        with overridden(self._layers, kept), bypassed(self._model, {*removed, *range(first)}):
            return logits_of(self._model, self._ids, positions)


@dataclass(frozen=True)
class Reference:
    """Token ids `[batch, seq]`, and what the whole `model` says to them, to compare it with itself without some layers.

    One position of `STRIDE` is looked at. `logits` `[batch, positions, vocabulary]` are kept in bfloat16 on the CPU:
    0.5 GB for 16 sequences of 2,048 tokens and a vocabulary of 32,000.
    """

    model: PreTrainedModel
    ids: Tensor
    positions: Tensor
    logits: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Tensor) -> Self:
        """Ask `model`, which is whole."""
        length = ids.shape[1]
        positions = torch.arange((length - 1) % STRIDE, length, STRIDE, device=ids.device)
        return cls(model, ids, positions, Teacher(model)(ids, positions).to("cpu", torch.bfloat16))

    def kl_without(self, sets: Iterable[Collection[int]], *, like: Collection[int]) -> Iterator[float]:
        """KL in nats from the whole model of the model without each set of layers; infinite where it is no number.

        What the sets have in common with the set `like` at the beginning of the model is computed once.

        Raises:
            LayersOutOfRange: a layer does not exist.
        """
        prefix, wanted = Prefix(self.model, self.ids, like), self.logits.to(self.ids.device)
        for layers in sets:
            distance = kl_divergence(prefix.logits(layers, self.positions), wanted)
            yield distance.double().nan_to_num(math.inf, posinf=math.inf).item()


def rises_without_each(
    model: PreTrainedModel, ids: Tensor, candidates: Sequence[int], removed: Collection[int] = ()
) -> Tensor:
    """How much the mean cross-entropy in nats of `ids` `[batch, seq]` rises without one more layer each.

    `[candidates]`. It rises from that of the model without the layers `removed`, which are out every time.
    Of L layers L² / 2 are computed instead of L².
    """
    prefix = Prefix(model, ids, removed)
    sets = [set(removed), *({*removed, layer} for layer in candidates)]
    losses = torch.stack([next_token_cross_entropy(prefix.logits(layers), ids) for layers in sets])
    return losses[1:] - losses[0]
