"""ELDeR: learn a weight for every layer, remove those of the smallest, train the rest to do without them.

After arXiv 2505.18232. The defaults depart from the paper where measurement favours it (see docs/log.md): weights on
the residual branch learnt by proximal steps against the unpruned model's distribution, half of them at a time; where
nothing is to be trained, a search that corrects the choice by whole sets; and a second stage that distils, hidden
states too, without the chosen layers from its first update on, which at the same operations is as good as letting them
fade. The paper's own wording is a matter of parameters: `ElderParameters.of_the_paper`.
"""

from __future__ import annotations

from collections.abc import Sequence

from elder_core.methods.base import Chooser, Context, Method, Selection
from elder_core.methods.elder import selection
from elder_core.methods.training import Fading, train
from elder_core.parameters import ElderParameters
from elder_core.spec import TrainingPoint


class Elder(Method):
    """Both stages; a budget of 0 leaves the second out."""

    def __init__(self, parameters: ElderParameters) -> None:
        self.parameters = parameters

    def select(self, context: Context, count: int) -> Selection:
        return self.chooser(context, (count,))(count)

    def chooser(self, context: Context, counts: Sequence[int]) -> Chooser:
        return selection.chooser(context, self.parameters, counts)

    def regularize(self, context: Context, removed: tuple[int, ...]) -> tuple[TrainingPoint, ...]:
        parameters = self.parameters
        fraction = parameters.anneal_fraction
        fading = None
        if fraction is not None:
            fading = Fading(fraction, parameters.penalty, parameters.norm, parameters.recovery_fraction)
        return train(context, parameters, removed, fading=fading)
