"""Published ways to choose layers, to compare ELDeR with. They score and remove; given a budget they train as well."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from elder_core.errors import NonFiniteLoss
from elder_core.journal import Entry
from elder_core.methods.base import Chooser, Context, Method, Selection
from elder_core.methods.losses import Teacher, frozen_copy
from elder_core.methods.training import Budget, train
from elder_core.parameters import BaselineParameters, TrainingParameters
from elder_core.spec import TrainingPoint
from elder_core.stream import writers
from elder_core.surgery import decoder_layers, parameters_only_in

P = TypeVar("P", bound=TrainingParameters)
S = TypeVar("S", bound=BaselineParameters)


class Baseline(Method, Generic[P]):
    """Chooses layers by `select`, makes up for them without training by `compensate`, then trains without them."""

    def __init__(self, parameters: P) -> None:
        self.parameters = parameters

    def compensate(self, context: Context, removed: tuple[int, ...]) -> None:
        """Change weights of the modules that `compensated` names, before any training. Most methods do nothing here."""

    def compensated(self, context: Context, removed: tuple[int, ...]) -> list[nn.Module]:
        """What `compensate` changes: all that the layers that stay add to the hidden state by, unless it is less."""
        stay = [layer for layer in range(len(decoder_layers(context.model))) if layer not in removed]
        return [writer for layer in stay for writer in writers(context.model, layer)]

    @property
    def compensates(self) -> bool:
        return type(self).compensate is not Baseline.compensate

    @contextmanager
    def made_up_for(self, context: Context, removed: tuple[int, ...]) -> Iterator[None]:
        """By `compensate`, whose changes are taken back; what it may change is kept on the CPU meanwhile."""
        if not self.compensates or not removed:
            yield
            return
        changed = [part for module in self.compensated(context, removed) for part in module.parameters()]
        kept = [part.detach().to("cpu", copy=True) for part in changed]
        try:
            self.compensate(context, removed)
            yield
        finally:
            with torch.no_grad():
                for part, before in zip(changed, kept, strict=True):
                    part.copy_(before)

    def regularize(self, context: Context, removed: tuple[int, ...]) -> tuple[TrainingPoint, ...]:
        trains = not Budget.of(self.parameters, context.windows.shape[1]).nothing
        teacher: Teacher | None = None  # the model as training finds it, unless it was changed by then
        if trains and self.compensates and self.parameters.taught:
            teacher = Teacher(frozen_copy(context.model, parameters_only_in(context.model, removed)))
        self.compensate(context, removed)
        return train(context, self.parameters, removed, teacher=teacher)


class ScoringBaseline(Baseline[S]):
    """A baseline that looks at calibration text."""

    def scoring_windows(self, context: Context) -> Tensor:
        """The windows `[samples, length]` that scores are computed on."""
        return context.windows[: self.parameters.scoring_samples]

    def scoring_batches(self, context: Context, *, number: int = 0, passes: int = 1) -> Iterator[Tensor]:
        """The same in batches `[size, length]`, on the device, as pass `number` (from 0) of `passes` over them.

        Each batch that is done with is reported as progress.

        Raises:
            Cancelled: the caller ended the run.
        """
        windows = self.scoring_windows(context)
        done = number * len(windows)
        for batch in context.passes(windows, self.parameters.scoring_batch_size):
            yield batch
            done += len(batch)
            context.monitor.step(done, passes * len(windows))

    def mean_over_windows(
        self, context: Context, score: Callable[[Tensor], Tensor], *, number: int = 0, passes: int = 1
    ) -> Tensor:
        """Mean over all windows, in float64 on the CPU, of what `score` answers to a batch `[size, length]`.

        `number` and `passes` are those of scoring_batches.

        Raises:
            Cancelled: the caller ended the run.
        """
        samples = len(self.scoring_windows(context))
        page = context.monitor.page("mean")
        known, total = 0, torch.zeros(())
        if page.recalled is not None:
            known, total = page.recalled.facts["batches"], page.recalled.tensors["total"]
        for done, batch in enumerate(self.scoring_batches(context, number=number, passes=passes), start=1):
            if done <= known:
                continue
            share = len(batch) / samples * score(batch).double().cpu()
            total = total.add_(share) if done > 1 else share
            page.offer(partial(Entry, {"batches": done}, {"total": total}))
        if done > known:
            page.keep(Entry({"batches": done}, {"total": total}))
        return total


class SharingBaseline(ScoringBaseline[S]):
    """One whose look at the text for one depth serves the others: it has a `chooser`, and `select` asks that."""

    def select(self, context: Context, count: int) -> Selection:
        return self.chooser(context, (count,))(count)

    @abstractmethod
    def chooser(self, context: Context, counts: Sequence[int]) -> Chooser: ...


def lowest(scores: Sequence[float], count: int, label: str) -> Selection:
    """The `count` layers of lowest score; the lower index among equals.

    Raises:
        NonFiniteLoss: a score is no number.
    """
    require_numbers(scores)
    chosen = sorted(range(len(scores)), key=lambda layer: (scores[layer], layer))[:count]
    return Selection(removed=tuple(sorted(chosen)), weights=tuple(scores), weight_label=label)


def require_numbers(scores: Sequence[float]) -> None:
    """Check what layers are chosen by.

    Raises:
        NonFiniteLoss: a score is NaN or infinite.
    """
    for score in scores:
        if not math.isfinite(score):
            raise NonFiniteLoss(
                f"A layer's score on the calibration text became {score}: see that the model's own loss is finite."
            )
