"""What a method is, what it is given, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.calibration.batches import batch_at, epochs_needed
from elder_core.monitor import Monitor
from elder_core.spec import GatePoint, TrainingPoint

LOGITS_BYTES = 2**30  # of one pass through the model


@dataclass(frozen=True)
class Context:
    """What a method works on.

    `model` is on `device`, in evaluation mode, with float32 weights on a CPU and as they are stored elsewhere;
    whatever a method does to it beyond training its weights, it undoes. `windows` `[samples, length]` are token ids on
    the CPU.
    """

    model: PreTrainedModel
    windows: Tensor
    seed: int
    device: torch.device
    monitor: Monitor

    def batch(self, step: int, size: int) -> Tensor:
        """Token ids `[size, length]` of batch number `step`, on the device."""
        return batch_at(self.windows, step, size, self.seed).to(self.device)

    def in_parts(self, ids: Tensor) -> tuple[Tensor, ...]:
        """`ids` `[batch, length]` in parts whose logits fit into 1 GiB in float32; one sequence at least."""
        vocabulary: int = self.model.config.get_text_config().vocab_size
        return torch.split(ids, max(1, LOGITS_BYTES // (4 * ids.shape[1] * vocabulary)))

    def passes(self, windows: Tensor, size: int) -> Iterator[Tensor]:
        """`windows` `[samples, length]` in batches of at most `size`, on the device, each small enough for one pass."""
        for batch in torch.split(windows, size):
            for part in self.in_parts(batch):
                yield part.to(self.device)

    def note_repetition(self, what: str, steps: int, batch_size: int) -> None:
        """Warn if `what` sees the text more than once; each time is in another order."""
        epochs = epochs_needed(len(self.windows), steps, batch_size)
        if epochs > 1:
            self.monitor.warn(
                f"The calibration text has {len(self.windows):,} sequences, so {what} went through it "
                f"{epochs:.1f} times; more text may give a better result: with {steps * batch_size:,} sequences none "
                "would be read twice."
            )


@dataclass(frozen=True)
class Selection:
    """`removed`, ascending, and the `weights` of all layers, small meaning removable, that they were chosen by.

    Where a search exchanged some of them, `weights` are what it began with; None where there are none: the caller named
    the layers, or the method judges sets of layers only. `weight_label` says in a few words what a weight is. `chosen`
    is what the method chose, where that could not be removed and `removed` stands in for it
    (elder_core.methods.expressible).
    """

    removed: tuple[int, ...]
    weights: tuple[float, ...] | None
    weight_label: str
    gate_path: tuple[GatePoint, ...] = ()
    chosen: tuple[int, ...] | None = None


Chooser = Callable[[int], Selection]
"""From a number of layers to the selection of so many; asked again, it answers the same at no cost."""

NAMED = "layers named by the job; no weights were learnt"


def named_layers(layers: tuple[int, ...]) -> Selection:
    """The selection where the job itself says which layers go."""
    return Selection(removed=tuple(sorted(layers)), weights=None, weight_label=NAMED)


class Method(ABC):
    """A way to choose the layers to remove, and to prepare the model for their removal."""

    @abstractmethod
    def __init__(self, parameters: Any) -> None:
        """Take the method's own parameters (see elder_core.registry)."""

    @abstractmethod
    def select(self, context: Context, count: int) -> Selection:
        """Choose `count` layers. The model is afterwards as it was.

        Raises:
            NonFiniteLoss: the loss became NaN or infinite.
            Cancelled: the caller ended the run.
        """

    def chooser(self, context: Context, counts: Sequence[int]) -> Chooser:
        """What chooses for any of `counts` when asked. The model is afterwards as it was, and must stay so until then.

        A method whose learning serves every depth does it here, once.

        Raises:
            NonFiniteLoss, Cancelled: see select; so may the chooser.
        """
        return cache(partial(self.select, context))

    @contextmanager
    def made_up_for(self, context: Context, removed: tuple[int, ...]) -> Iterator[None]:
        """The model with what the method does without training to make up for `removed`, until the context is left."""
        yield

    def regularize(self, context: Context, removed: tuple[int, ...]) -> tuple[TrainingPoint, ...]:
        """Train the model so that it does without the layers `removed`. A method that only selects does nothing.

        Raises:
            NonFiniteLoss: the loss became NaN or infinite.
            Cancelled: the caller ended the run.
        """
        return ()
