"""The last layers, whatever they do: the simplest choice that arXiv 2411.15558 and others compare with."""

from __future__ import annotations

from elder_core.methods.base import Context, Selection
from elder_core.methods.baseline import Baseline
from elder_core.parameters import LastParameters
from elder_core.surgery import decoder_layers


class Last(Baseline[LastParameters]):
    """The `count` layers next to the final norm."""

    def select(self, context: Context, count: int) -> Selection:
        layers = len(decoder_layers(context.model))
        return Selection(removed=tuple(range(layers - count, layers)), weights=None, weight_label="the last layers")
