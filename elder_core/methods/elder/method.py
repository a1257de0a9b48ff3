"""ELDeR: learn a weight for every layer, regularise the least important towards the identity, remove them.

After arXiv 2505.18232. The defaults depart from the paper where measurement favours it (see docs/log.md): weights on
the residual branch learnt by proximal steps against the unpruned model's distribution, half of them at a time, and a
second stage that fades the chosen layers out while it distils. The paper's own wording is reached by parameters alone:

    gate=output  gate_optimizer=adam  gate_loss=cross_entropy  gate_penalty=5e-3  gate_share=1  layers_per_round=1
    loss=cross_entropy  norm=l2  penalty=1e-3  anneal_fraction=0
"""

from __future__ import annotations

from elder_core.calibration.batches import epochs_needed
from elder_core.methods.base import Context, Method, Selection
from elder_core.methods.elder import regularization, selection
from elder_core.spec import ElderParameters, TrainingPoint


class Elder(Method):
    """Both stages; `updates=0` leaves the second out."""

    def __init__(self, parameters: ElderParameters) -> None:
        self.parameters = parameters

    def select(self, context: Context, count: int) -> Selection:
        rounds = -(-count // (self.parameters.layers_per_round or count))
        _note_repetition(
            context, "the layer weights", rounds * self.parameters.gate_steps, self.parameters.gate_batch_size
        )
        return selection.select(context, self.parameters, count)

    def regularize(self, context: Context, removed: tuple[int, ...]) -> tuple[TrainingPoint, ...]:
        _note_repetition(context, "stage 2", self.parameters.updates, self.parameters.batch_size)
        return regularization.regularize(context, self.parameters, removed)


def _note_repetition(context: Context, what: str, steps: int, batch_size: int) -> None:
    """Warn if a stage sees its text more than once; each time is in another order."""
    epochs = epochs_needed(len(context.windows), steps, batch_size)
    if epochs > 1:
        context.monitor.warn(
            f"The calibration text has {len(context.windows):,} sequences, so {what} went through it "
            f"{epochs:.1f} times; more text may give a better result."
        )
