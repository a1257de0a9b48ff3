"""SLEB (arXiv 2402.09025): remove one layer at a time, always the one that the present model predicts best without."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from elder_core.methods.base import Chooser, Context, Selection
from elder_core.methods.baseline import SharingBaseline, require_numbers
from elder_core.methods.prefix import rises_without_each
from elder_core.parameters import SlebParameters
from elder_core.surgery import decoder_layers


class Sleb(SharingBaseline[SlebParameters]):
    """Greedy, by the paper's Metric³: the cross-entropy of the text, in the model as it is after earlier removals."""

    def chooser(self, context: Context, counts: Sequence[int]) -> Chooser:
        """A deeper selection begins with a shallower one."""
        candidates = list(range(len(decoder_layers(context.model))))
        removed: list[int] = []
        weights = [[0.0] * len(candidates)]  # after so many removals

        def greedy(count: int) -> Selection:
            while len(removed) < count:
                score = partial(rises_without_each, context.model, candidates=candidates, removed=removed)
                rises = self.mean_over_windows(context, score, number=len(removed), passes=max(counts)).tolist()
                require_numbers(rises)
                weights.append(weights[-1].copy())
                for layer, rise in zip(candidates, rises, strict=True):
                    weights[-1][layer] = rise
                removed.append(candidates.pop(rises.index(min(rises))))
            label = "rise of cross-entropy without the layer, when last tried"
            return Selection(tuple(sorted(removed[:count])), tuple(weights[count]), label)

        return greedy
