"""Stage 2: train the model so that it does without the chosen layers."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.gates import gated, observed
from elder_core.methods.base import Context
from elder_core.methods.elder.losses import frozen_copy, loss_of, require_finite, teacher_of
from elder_core.methods.mathematics import annealed_gate, delta_norm, learning_rate_at
from elder_core.spec import ElderParameters, Gate, Loss, TrainingPoint
from elder_core.surgery import bypassed, decoder_layers

BETAS = (0.9, 0.95)
CLIP_NORM = 1.0


def regularize(context: Context, parameters: ElderParameters, removed: Collection[int]) -> tuple[TrainingPoint, ...]:
    """Train all weights on loss + λ2 · Σ over `removed` of the norm of Δ, while those layers' weights fall to 0.

    From the update on at which they are 0 the layers are bypassed, so that the rest trains the shortened model at the
    shortened model's cost. The loss is that of `parameters.loss`, its teacher the model as it was at the beginning.

    Raises:
        NonFiniteLoss, Cancelled: see Method.regularize.
    """
    model, updates = context.model, parameters.updates
    if updates == 0:
        return ()
    teacher = teacher_of(frozen_copy(model)) if parameters.loss is Loss.KL else None
    model.float()  # small updates would be lost in bfloat16 weights; the arithmetic may still be in bfloat16
    optimizer = torch.optim.AdamW(model.parameters(), lr=parameters.learning_rate, betas=BETAS)
    points: list[TrainingPoint] = []
    started = time.monotonic()
    for update in range(updates):
        gate = annealed_gate(update, updates, parameters.anneal_fraction)
        rate = learning_rate_at(update, updates, parameters.learning_rate)
        ids = context.batch(update, parameters.batch_size)
        wanted = teacher(ids) if teacher else None
        with _weighted(model, removed, gate, parameters) as penalties:
            loss = loss_of(model, ids, parameters.loss, wanted)
        penalty = sum(penalties.values(), torch.zeros((), device=context.device)) if penalties else None
        _step(optimizer, loss if penalty is None else loss + parameters.penalty * penalty, rate, update)
        points.append(_point(update, loss, penalty, gate, rate))
        speed = (update + 1) * ids.numel() / (time.monotonic() - started)
        context.monitor.step(update + 1, updates, loss=points[-1].loss, gate=gate, tokens_per_second=speed)
    return tuple(points)


@contextmanager
def _weighted(
    model: PreTrainedModel, removed: Collection[int], gate: float, parameters: ElderParameters
) -> Iterator[dict[int, Tensor]]:
    """The model with weight `gate` on the layers `removed`; yields the norms of their Δ, none once `gate` is 0."""
    if gate == 0:
        with bypassed(model, removed):
            yield {}
        return
    layers = decoder_layers(model)
    weights = torch.full((len(layers),), gate, device=model.device)
    look = partial(delta_norm, norm=parameters.norm)
    with observed(layers, look, removed) as norms, gated(layers, weights, Gate.RESIDUAL, removed if gate < 1 else ()):
        yield norms


def _step(optimizer: torch.optim.Optimizer, objective: Tensor, rate: float, update: int) -> None:
    """One update by the gradient of `objective`, clipped to norm 1."""
    require_finite(objective.detach(), "The training loss", update + 1)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    objective.backward()  # type: ignore[no-untyped-call]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
    require_finite(norm, "The norm of the gradient", update + 1)
    optimizer.step()


def _point(update: int, loss: Tensor, penalty: Tensor | None, gate: float, rate: float) -> TrainingPoint:
    return TrainingPoint(
        update=update + 1,
        loss=loss.item(),
        penalty=None if penalty is None else penalty.item(),
        gate=gate,
        learning_rate=rate,
    )
