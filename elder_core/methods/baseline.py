"""Published ways to choose layers, to compare ELDeR with. They score and remove; given a budget they train as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from elder_core.methods.base import Context, Method, Selection
from elder_core.methods.losses import frozen_copy, teacher_of
from elder_core.methods.training import train
from elder_core.parameters import BaselineParameters, Loss
from elder_core.spec import TrainingPoint

P = TypeVar("P", bound=BaselineParameters)


class Baseline(Method, Generic[P]):
    """Chooses layers by `select`, makes up for them without training by `compensate`, then trains without them."""

    def __init__(self, parameters: P) -> None:
        self.parameters = parameters

    def compensate(self, context: Context, removed: tuple[int, ...]) -> None:
        """Change the weights of the layers that stay, before any training. Most methods do nothing here."""

    def regularize(self, context: Context, removed: tuple[int, ...]) -> tuple[TrainingPoint, ...]:
        trains = bool(self.parameters.tokens or self.parameters.updates or self.parameters.seconds)
        teacher = teacher_of(frozen_copy(context.model)) if trains and self.parameters.loss is Loss.KL else None
        self.compensate(context, removed)
        return train(context, self.parameters, removed, teacher=teacher)

    def scoring_windows(self, context: Context) -> Tensor:
        """The windows `[samples, length]` that scores are computed on."""
        return context.windows[: self.parameters.scoring_samples]

    def scoring_batches(self, context: Context) -> Iterator[Tensor]:
        """The same in batches `[size, length]`, on the device."""
        for batch in torch.split(self.scoring_windows(context), self.parameters.scoring_batch_size):
            yield batch.to(context.device)


def lowest(scores: Sequence[float], count: int, label: str) -> Selection:
    """The `count` layers of lowest score; the lower index among equals."""
    chosen = sorted(range(len(scores)), key=lambda layer: (scores[layer], layer))[:count]
    return Selection(removed=tuple(sorted(chosen)), weights=tuple(scores), weight_label=label)
