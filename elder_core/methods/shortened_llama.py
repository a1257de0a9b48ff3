"""Shortened LLaMA (arXiv 2402.02834): rank all layers once, by perplexity without them or by a Taylor expansion."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import torch
from torch import nn

from elder_core.methods.base import Chooser, Context, Selection
from elder_core.methods.baseline import SharingBaseline, lowest, require_numbers
from elder_core.methods.losses import loss_of
from elder_core.methods.mathematics import taylor_importance
from elder_core.methods.prefix import rises_without_each
from elder_core.parameters import Criterion, Loss, ShortenedLlamaParameters
from elder_core.surgery import decoder_layers


class ShortenedLlama(SharingBaseline[ShortenedLlamaParameters]):
    """One-shot. By perplexity any layer may go; by Taylor the first and last layers are kept (the paper's Taylor+)."""

    def chooser(self, context: Context, counts: Sequence[int]) -> Chooser:
        if self.parameters.criterion is Criterion.PERPLEXITY:
            layers = range(len(decoder_layers(context.model)))
            score = partial(rises_without_each, context.model, candidates=layers)
            rises = self.mean_over_windows(context, score).tolist()
            return cache(lambda count: lowest(rises, count, "rise of cross-entropy without the layer"))
        scores = self._taylor(context)
        require_numbers(scores)
        label = "sum of |weight · gradient| over the layer's matrices"

        def least_important(count: int) -> Selection:
            chosen = sorted(self._allowed(context, count), key=lambda layer: (scores[layer], layer))[:count]
            return Selection(tuple(sorted(chosen)), tuple(scores), label)

        return cache(least_important)

    def _taylor(self, context: Context) -> list[float]:
        """Importance of each layer. The gradient is that of all windows together, kept in float32 for all layers."""
        groups = [_matrices(layer) for layer in decoder_layers(context.model)]
        weights = [weight for group in groups for weight in group]
        total = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        for batch in self.scoring_batches(context):
            loss = loss_of(context.model, batch, Loss.CROSS_ENTROPY, None)
            share = len(batch) / len(self.scoring_windows(context))
            found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            for gathered, gradient in zip(total, found, strict=True):
                gathered.add_(gradient, alpha=share)
        gradients = iter(total)
        return [taylor_importance(group, [next(gradients) for _ in group]) for group in groups]

    def _allowed(self, context: Context, count: int) -> range:
        layers = len(decoder_layers(context.model))
        wanted = self.parameters.protect_first, self.parameters.protect_last
        first, last = protection(layers, count, *wanted)
        if (first, last) != wanted:
            context.monitor.warn(
                f"Keeping the first {wanted[0]} and the last {wanted[1]} of {layers} layers would leave fewer than the "
                f"{count} to remove: only the first {first} and the last {last} were kept."
            )
        return range(first, layers - last)


def protection(layers: int, count: int, first: int, last: int) -> tuple[int, int]:
    """How many of the `first` and `last` layers can be kept so that `count` of `layers` can go.

    The larger number gives way first, so that layers become free from the middle outwards.
    """
    while layers - first - last < count:
        first, last = (first - 1, last) if first >= last else (first, last - 1)
    return first, last


def _matrices(layer: nn.Module) -> list[nn.Parameter]:
    """Its weights, as the paper counts them: without norms and biases, and without what is never learnt."""
    return [parameter for parameter in layer.parameters() if parameter.dim() > 1 and parameter.requires_grad]
