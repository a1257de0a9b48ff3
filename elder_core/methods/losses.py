"""What methods train and choose against: a loss of the text itself, or the distance from the whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from elder_core.devices import autocast, computes_in_bfloat16
from elder_core.gates import observed
from elder_core.methods.mathematics import kl_divergence, next_token_cross_entropy
from elder_core.parameters import Loss
from elder_core.surgery import decoder_layers, row_of

FREQUENCIES = "inv_freq"  # what the names of all of transformers' buffers of them end with


@dataclass(frozen=True)
class Teacher:
    """The unpruned model: `model`, as it is within a context that `unchanged` makes."""

    model: PreTrainedModel
    unchanged: Callable[[], AbstractContextManager[None]] = nullcontext

    @torch.no_grad()
    def __call__(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `logits_of`."""
        with self.unchanged():
            return logits_of(self.model, ids, positions)

    def states(self, ids: Tensor, layers: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """The logits, and the hidden states `[batch, seq, hidden]` that leave `layers`."""
        with observed(decoder_layers(self.model), leaving, layers) as seen:
            return self(ids), dict(seen)


def leaving(_: Tensor, y: Tensor) -> Tensor:
    """Looks at what leaves a layer (gates.Look)."""
    return y


def logits_of(model: PreTrainedModel, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """Logits `[batch, seq, vocabulary]` of `ids` `[batch, seq]`, or `[batch, positions, vocabulary]` at `positions`."""
    kept = {} if positions is None else {"logits_to_keep": positions}
    with autocast(ids.device):
        logits: Tensor = model(input_ids=ids, use_cache=False, **kept).logits
    if positions is None or logits.shape[1] == len(positions):
        return logits
    return logits[:, positions]  # of a model that knows no such argument


def frozen_copy(model: PreTrainedModel, idle: Iterable[nn.Parameter] = ()) -> PreTrainedModel:
    """A copy that later training leaves alone; in bfloat16 where it computes in that anyway.

    What the architecture keeps in float32 stays so, as does all that is of another type than the model's weights, and
    the frequencies of rotary positions: rounded to bfloat16 they would turn far positions by radians. The parameters
    `idle`, which will not be trained, share their memory with the copy's.
    """
    shared = {id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in idle}
    twin = copy.deepcopy(model, shared).requires_grad_(False)
    if computes_in_bfloat16(twin.device):
        row, kind = row_of(model), twin.dtype
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            if tensor.dtype == kind and not name.endswith(FREQUENCIES) and not row.keeps_float32(name):
                tensor.data = tensor.data.to(torch.bfloat16)
    return twin


def loss_of(model: PreTrainedModel, ids: Tensor, loss: Loss, wanted: Tensor | None) -> Tensor:
    """The scalar loss of `model` on `ids` `[batch, seq]`; `wanted` are the teacher's logits, which only KL needs."""
    return loss_between(logits_of(model, ids), ids, loss, wanted)


def loss_between(logits: Tensor, ids: Tensor, loss: Loss, wanted: Tensor | None) -> Tensor:
    """The scalar loss of `logits` `[batch, seq, vocabulary]`; see `loss_of`."""
    if loss is Loss.CROSS_ENTROPY:
        return next_token_cross_entropy(logits, ids)
    assert wanted is not None, "KL needs the teacher's logits"
    return kl_divergence(logits, wanted)
