"""Layers chosen without looking at the model, which arXiv 2411.15558 and others compare methods with."""

from __future__ import annotations

import numpy as np

from elder_core.methods.base import Context, Selection
from elder_core.methods.baseline import Baseline
from elder_core.parameters import LastParameters, RandomParameters
from elder_core.surgery import decoder_layers


class Random(Baseline[RandomParameters]):
    """Every set of `count` layers is as likely as any other."""

    def select(self, context: Context, count: int) -> Selection:
        layers = len(decoder_layers(context.model))
        drawn = np.random.default_rng([context.seed]).choice(layers, count, replace=False)
        return Selection(removed=tuple(sorted(drawn.tolist())), weights=None, weight_label="layers drawn at random")


class Last(Baseline[LastParameters]):
    """The `count` layers next to the final norm."""

    def select(self, context: Context, count: int) -> Selection:
        layers = len(decoder_layers(context.model))
        return Selection(removed=tuple(range(layers - count, layers)), weights=None, weight_label="the last layers")
