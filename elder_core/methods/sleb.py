"""SLEB (arXiv 2402.09025): remove one layer at a time, always the one that the present model predicts best without."""

from __future__ import annotations

from functools import partial

from elder_core.methods.base import Context, Selection
from elder_core.methods.baseline import ScoringBaseline, require_numbers
from elder_core.methods.prefix import rises_without_each
from elder_core.parameters import SlebParameters
from elder_core.surgery import decoder_layers


class Sleb(ScoringBaseline[SlebParameters]):
    """Greedy, by the paper's Metric³: the cross-entropy of the text, in the model as it is after earlier removals."""

    def select(self, context: Context, count: int) -> Selection:
        candidates = list(range(len(decoder_layers(context.model))))
        weights = [0.0] * len(candidates)
        removed: list[int] = []
        for number in range(count):
            score = partial(rises_without_each, context.model, candidates=candidates, removed=removed)
            rises = self.mean_over_windows(context, score, number=number, passes=count).tolist()
            require_numbers(rises)
            for layer, rise in zip(candidates, rises, strict=True):
                weights[layer] = rise
            removed.append(candidates.pop(rises.index(min(rises))))
        return Selection(
            removed=tuple(sorted(removed)),
            weights=tuple(weights),
            weight_label="rise of cross-entropy without the layer, when last tried",
        )
