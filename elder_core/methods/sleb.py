"""SLEB (arXiv 2402.09025): remove one layer at a time, always the one that the present model predicts best without."""

from __future__ import annotations

import torch
from torch import Tensor

from elder_core.methods.base import Context, Selection
from elder_core.methods.baseline import ScoringBaseline, require_numbers
from elder_core.methods.prefix import losses_without_each
from elder_core.parameters import SlebParameters
from elder_core.surgery import decoder_layers


class Sleb(ScoringBaseline[SlebParameters]):
    """Greedy, by the paper's Metric³: the cross-entropy of the text, in the model as it is after earlier removals."""

    def select(self, context: Context, count: int) -> Selection:
        candidates = list(range(len(decoder_layers(context.model))))
        weights = [0.0] * len(candidates)
        removed: list[int] = []
        for number in range(count):
            losses = self._losses(context, candidates, removed, number, count).tolist()
            require_numbers(losses)
            for layer, loss in zip(candidates, losses, strict=True):
                weights[layer] = loss
            removed.append(candidates.pop(losses.index(min(losses))))
        return Selection(
            removed=tuple(sorted(removed)),
            weights=tuple(weights),
            weight_label="cross-entropy without the layer, when last tried",
        )

    def _losses(self, context: Context, candidates: list[int], removed: list[int], number: int, rounds: int) -> Tensor:
        """Cross-entropy `[candidates]` without one more layer each, the mean over all windows."""
        total = torch.zeros(len(candidates), dtype=torch.float64)
        for batch in self.scoring_batches(context, number=number, passes=rounds):
            total += len(batch) * losses_without_each(context.model, batch, candidates, removed)
        return total / len(self.scoring_windows(context))
