"""After stage 1, where no training follows: exchange chosen layers for others while the result comes nearer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from elder_core.journal import Entry
from elder_core.methods.base import Context
from elder_core.methods.prefix import Reference
from elder_core.parameters import ElderParameters
from elder_core.surgery import decoder_layers

MOST_EXCHANGES = 16
HEAT = 0.25  # share of the sequences on which sets run against each other before the best go on to all
Layers = frozenset[int]


def refine(scores: Scores, ranked: Sequence[int], count: int) -> Layers:
    """The first `count` of the layers `ranked` (most removable first), improved by one exchange after the other.

    A learnt weight says what a layer is worth beside whole neighbours, not without the other chosen ones; the score of
    the set itself does: KL from the whole model. An exchange gives back the layer whose return helps most, and takes
    the one that is then missed least, among the `search_border` layers on each side of the border: 2 b forward passes
    instead of b², each begun where the set first differs. If that is no gain the next best return is tried,
    `search_width` in all.

    Raises:
        Cancelled: the caller ended the run.
    """
    chosen, context = frozenset(ranked[:count]), scores.context
    turn = scores.parameters.turn(len(decoder_layers(context.model)))
    learnt = scores.parameters.gate_updates(context.windows.shape[1], rounds=1, turn=turn)
    for _ in range(MOST_EXCHANGES):
        better = _exchanged(chosen, ranked, scores)
        if better is None:
            break
        chosen = better
        context.monitor.step(learnt, learnt, score=scores.known[chosen])
    return chosen


def _exchanged(chosen: Layers, ranked: Sequence[int], scores: Scores) -> Layers | None:
    """`chosen` with one layer exchanged for a lower score; None if none of those tried has one."""
    parameters = scores.parameters
    last_chosen = [layer for layer in ranked if layer in chosen][-parameters.search_border :]
    first_kept = [layer for layer in ranked if layer not in chosen][: parameters.search_border]
    returns = scores.lowest(chosen, [chosen - {layer} for layer in last_chosen], parameters.search_width)
    for returned in returns:
        taken = [returned | {layer} for layer in first_kept]
        (best,) = scores.lowest(returned, taken, 1)
        if scores.known[best] < scores.known[chosen]:
            return best
    return None


class Scores:
    """KL in nats from the whole model of the model without a set of layers, each computed once, for all depths.

    Infinite where it is no number. Memory: see Reference.
    """

    def __init__(self, context: Context, parameters: ElderParameters) -> None:
        self.known: dict[Layers, float] = {}  # on all sequences
        self._rough: dict[Layers, float] = {}  # on the first of them: the sum that the rest is added to
        self.context = context
        self.parameters = parameters
        self._page = context.monitor.page("scores")
        if self._page.recalled is not None:
            self.known = {frozenset(layers): score for layers, score in self._page.recalled.facts["known"]}
            self._rough = {frozenset(layers): score for layers, score in self._page.recalled.facts["rough"]}
        self._windows = context.windows[-parameters.searched :]
        batches = context.passes(self._windows, parameters.search_batch_size)
        self._text = [Reference.of(context.model, ids) for ids in batches]
        self._first = math.ceil(HEAT * len(self._text))

    def lowest(self, base: Layers, sets: Sequence[Layers], count: int) -> list[Layers]:
        """The `count` lowest of `sets`, ascending; what they share with `base` in the first layers is computed once.

        All run on a part of the sequences, and twice as many as are wanted on the rest, where `base` itself is
        computed too, which costs next to nothing beside them. Of two that are equal the earlier comes first.
        """
        new = [layers for layers in (base, *sets) if layers not in self._rough]
        for layers, score in zip(new, self._compute(base, new, 0, self._first), strict=True):
            self._rough[layers] = score
        ahead = sorted(sets, key=lambda layers: self._rough[layers])[: 2 * count]
        new = [layers for layers in (base, *ahead) if layers not in self.known]
        for layers, score in zip(new, self._compute(base, new, self._first, None), strict=True):
            self.known[layers] = self._rough[layers] + score
        self._page.offer(self._entry)
        self.context.monitor.check_cancelled()
        return sorted(ahead, key=lambda layers: self.known[layers])[:count]

    def _entry(self) -> Entry:
        def listed(scores: dict[Layers, float]) -> list[tuple[list[int], float]]:
            return [(sorted(layers), score) for layers, score in scores.items()]

        return Entry({"known": listed(self.known), "rough": listed(self._rough)})

    def _compute(self, base: Layers, sets: Sequence[Layers], begin: int, end: int | None) -> list[float]:
        """The part of the batches from `begin` to `end` in the score of each of `sets`."""
        total = [0.0] * len(sets)
        for reference in self._text[begin:end] if sets else ():
            share = len(reference.ids) / len(self._windows)
            for index, divergence in enumerate(reference.kl_without(sets, like=base)):
                self.context.monitor.check_cancelled()
                total[index] += share * divergence
        return total
