"""Layers drawn at random: what any method must beat."""

from __future__ import annotations

import numpy as np

from elder_core.methods.base import Context, Selection
from elder_core.methods.baseline import Baseline
from elder_core.parameters import RandomParameters
from elder_core.surgery import decoder_layers


class Random(Baseline[RandomParameters]):
    """Every set of `count` layers is as likely as any other."""

    def select(self, context: Context, count: int) -> Selection:
        layers = len(decoder_layers(context.model))
        drawn = np.random.default_rng([context.seed]).choice(layers, count, replace=False)
        return Selection(removed=tuple(sorted(drawn.tolist())), weights=None, weight_label="layers drawn at random")
