"""How often a job goes through its calibration text, and where that is too often. Imports no torch.

Text seen again and again teaches the model the text, and not the language: a few times are warned of (Context.
note_repetition), more than `MOST_TIMES` are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from elder_core.errors import CalibrationTooSmall
from elder_core.parameters import CutParameters, ElderParameters, TrainingParameters
from elder_core.spec import JobSpec

MOST_TIMES = 16


@dataclass(frozen=True)
class Reading:
    """`what` reads so many batches in each of `rounds`, for each of which the budget has to be one `per_batch`."""

    what: str
    batches: int
    batch_size: int
    batch_parameter: str
    parameter: str
    per_batch: Fraction
    rounds: int = 1

    @property
    def sequences(self) -> int:
        return self.batches * self.rounds * self.batch_size

    def allowed(self, sequences: int) -> str:
        """The largest budget that reads at most `sequences`; where none does it is the batch that is too large."""
        if budget := math.floor(sequences // (self.rounds * self.batch_size) * self.per_batch):
            return f"at most {self.parameter} {budget:,}"
        return f"a smaller {self.batch_parameter}"


def check_budget(spec: JobSpec, length: int, sequences: int, most: int | None, *, layers: int | None = None) -> None:
    """Refuse a job that would read its text, of at most `sequences` of `length` tokens, too often.

    `most` is how many of the `layers` go, or may go at most (see most_layers). Both are None where the model is not
    known yet: then what is surely read counts, for one layer. A budget in seconds cannot be told beforehand.

    Raises:
        CalibrationTooSmall: the message says how much text is needed, and what budget this text allows.
    """
    fitting = sequences if spec.calibration.samples is None else min(sequences, spec.calibration.samples)
    for reading in _readings(spec, length, most, layers):
        if reading.sequences > MOST_TIMES * fitting:
            needed = math.ceil(reading.sequences / MOST_TIMES)
            scarce = sequences < needed
            few = f"the calibration text gives no more than {sequences:,}"
            if fitting < sequences:
                few = f"calibration.samples takes no more than {fitting:,}" + (f", and {few}" if scarce else "")
            more = f"{needed:,} sequences" if scarce else f"samples {needed:,}"
            raise CalibrationTooSmall(
                f"{reading.what} would read {reading.sequences:,} sequences of {length:,} tokens, but {few}, and each "
                f"may be read {MOST_TIMES} times at most. Give {more} ({needed * length:,} tokens) or more, or "
                f"{reading.allowed(MOST_TIMES * fitting)}.",
                loc=("calibration", "source" if scarce else "samples"),
            )


def most_layers(count: int | None, layers: int) -> int:
    """Layers that go from a model of `layers`: `count`, or where only a search will tell (None) all but one."""
    return layers - 1 if count is None else count


def _readings(spec: JobSpec, length: int, most: int | None, layers: int | None) -> list[Reading]:
    parameters = spec.method_as_run
    if isinstance(parameters, CutParameters):
        return []
    found = [] if (training := _training(parameters, length)) is None else [training]
    if isinstance(parameters, ElderParameters) and spec.layers is None:
        rounds = parameters.rounds(most or 1)
        rounded = most is None and parameters.layers_per_round and parameters.gate_fraction  # more rounds may read less
        if parameters.gate_seconds(rounds) is None and not rounded:
            turn = 1 if layers is None else parameters.turn(layers)
            updates, size = parameters.gate_updates(length, rounds, turn), parameters.gate_batch_size
            what = "Learning the layer weights"
            found.append(Reading(what, updates, size, "gate_batch_size", "gate_steps", Fraction(1), rounds))
    return found


def _training(parameters: TrainingParameters, length: int) -> Reading | None:
    """What training reads; None where its budget is no number of sequences."""
    size, updates = parameters.batch_size, parameters.training_updates(length)
    if updates is None:
        return None
    parameter, per_batch = ("tokens", size * length) if parameters.updates is None else ("updates", 1)
    return Reading("Training", updates, size, "batch_size", parameter, per_batch / parameters.training_share)
