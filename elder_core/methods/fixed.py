"""Layers chosen without looking at the model: those that arXiv 2411.15558 and others compare with, or the job's own."""

from __future__ import annotations

import numpy as np

from elder_core.errors import LayersNotNamed
from elder_core.methods.base import Context, Method, Selection
from elder_core.methods.baseline import Baseline
from elder_core.parameters import CutParameters, LastParameters, RandomParameters
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


class Cut(Method):
    """The layers that the job names. The pipeline removes them without loading the model (elder_core.cutting)."""

    def __init__(self, parameters: CutParameters) -> None:
        self.parameters = parameters

    def select(self, context: Context, count: int) -> Selection:
        """Choose nothing.

        Raises:
            LayersNotNamed: always; a job that names its layers does not ask.
        """
        raise LayersNotNamed("The method cut chooses no layers: name them in layers.", loc=("method", "name"))
