"""After stage 1: exchange chosen layers for others while the score of the set without which the model is left falls."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from elder_core.journal import Entry
from elder_core.methods.base import Context
from elder_core.methods.losses import Teacher, loss_between
from elder_core.methods.prefix import Prefix
from elder_core.methods.repair import Repair
from elder_core.parameters import ElderParameters, Loss, SearchScore

MOST_EXCHANGES = 16
Layers = frozenset[int]


def refine(context: Context, parameters: ElderParameters, ranked: Sequence[int], count: int) -> Layers:
    """The first `count` of the layers `ranked` (most removable first), improved by one exchange after the other.

    A learnt weight says what a layer is worth beside whole neighbours, not without the other chosen ones; the score of
    the set itself does. An exchange gives back the layer whose return helps most, and takes the one that is then
    missed least, among the `search_border` layers on each side of the border: 2 b forward passes instead of b², each
    begun where the set first differs. If that is no gain the next best return is tried, `search_width` in all.

    Raises:
        Cancelled: the caller ended the run.
    """
    chosen = frozenset(ranked[:count])
    if parameters.searched_by is None:
        return chosen
    scores = _SCORES[parameters.searched_by](context, parameters)
    for _ in range(MOST_EXCHANGES):
        better = _exchanged(chosen, ranked, parameters, scores)
        if better is None:
            break
        chosen = better
        context.monitor.step(parameters.gate_steps, parameters.gate_steps, score=scores.known[chosen])
    return chosen


def _exchanged(chosen: Layers, ranked: Sequence[int], parameters: ElderParameters, scores: _Scores) -> Layers | None:
    """`chosen` with one layer exchanged for a lower score; None if none of those tried has one."""
    last_chosen = [layer for layer in ranked if layer in chosen][-parameters.search_border :]
    first_kept = [layer for layer in ranked if layer not in chosen][: parameters.search_border]
    returns = scores.ascending(chosen, [chosen - {layer} for layer in last_chosen])
    for returned in returns[: parameters.search_width]:
        taken = [returned | {layer} for layer in first_kept]
        best = scores.ascending(returned, [chosen, *taken])[0]
        if scores.known[best] < scores.known[chosen]:
            return best
    return None


class _Scores(ABC):
    """A number for every set of layers, small where the model is well off without it; each is computed once."""

    def __init__(self, context: Context, parameters: ElderParameters) -> None:
        self.known: dict[Layers, float] = {}
        self._context = context
        self._page = context.monitor.page("scores")
        if self._page.recalled is not None:
            self.known = {frozenset(layers): score for layers, score in self._page.recalled.facts["known"]}
        self._windows = context.windows[-parameters.search_samples :]

    def ascending(self, base: Layers, sets: Sequence[Layers]) -> list[Layers]:
        """`sets` by score; what they share with `base` at the beginning of the model is computed once.

        Of two that are equal the earlier comes first.
        """
        missing = [layers for layers in sets if layers not in self.known]
        if missing:
            self.known.update(zip(missing, self._compute(base, missing), strict=True))
            self._page.offer(
                lambda: Entry({"known": [(sorted(layers), score) for layers, score in self.known.items()]})
            )
            self._context.monitor.check_cancelled()
        return sorted(sets, key=lambda layers: self.known[layers])

    @abstractmethod
    def _compute(self, base: Layers, sets: Sequence[Layers]) -> Iterable[float]:
        """One score for each of `sets`, infinite where it is no number."""


class _Losses(_Scores):
    """Mean loss of the model without the layers."""

    def __init__(self, context: Context, parameters: ElderParameters) -> None:
        super().__init__(context, parameters)
        self._loss = parameters.gate_loss
        self._batches = list(context.passes(self._windows, parameters.search_batch_size))
        self._wanted = self._of_the_whole() if self._loss is Loss.KL else [None] * len(self._batches)

    def _of_the_whole(self) -> list[Tensor]:
        """The unpruned model's logits `[batch, seq, vocabulary]` of every batch, in bfloat16 on the CPU.

        There they take 2 GB for 16 sequences of 2,048 tokens and a vocabulary of 32,000.
        """
        teacher = Teacher(self._context.model)
        return [teacher(ids).to("cpu", torch.bfloat16) for ids in self._batches]

    def _compute(self, base: Layers, sets: Sequence[Layers]) -> list[float]:
        total = torch.zeros(len(sets), dtype=torch.float64)
        for ids, kept in zip(self._batches, self._wanted, strict=True):
            wanted = None if kept is None else kept.to(ids.device)
            prefix = Prefix(self._context.model, ids, base)
            for index, layers in enumerate(sets):
                self._context.monitor.check_cancelled()
                loss = loss_between(prefix.logits(layers), ids, self._loss, wanted)
                total[index] += loss.double().nan_to_num(math.inf).item() * len(ids) / len(self._windows)
        found: list[float] = total.tolist()
        return found


class _Errors(_Scores):
    """What linear maps in the layers' place cannot make up for; see Repair."""

    def __init__(self, context: Context, parameters: ElderParameters) -> None:
        super().__init__(context, parameters)
        self._repair = Repair(context.model, self._windows.to(context.device))

    def _compute(self, base: Layers, sets: Sequence[Layers]) -> Iterator[float]:
        self._repair.begin_like(base)
        for layers in sets:
            self._context.monitor.check_cancelled()
            error = self._repair.error(layers)
            yield math.inf if math.isnan(error) else error


_SCORES: dict[SearchScore, type[_Scores]] = {SearchScore.LOSS: _Losses, SearchScore.RECOVERY: _Errors}
