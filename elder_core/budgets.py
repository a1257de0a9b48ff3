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
    """`what` reads so many batches of calibration text, for each of which the budget has to be one `per_batch`."""

    what: str
    batches: int
    batch_size: int
    parameter: str
    per_batch: Fraction

    @property
    def sequences(self) -> int:
        return self.batches * self.batch_size

    def allowed(self, sequences: int) -> str:
        """The largest budget that reads at most `sequences`."""
        return f"{self.parameter} {math.floor(sequences // self.batch_size * self.per_batch):,}"


def check_budget(spec: JobSpec, length: int, sequences: int, most: int | None) -> None:
    """Refuse a job that would read its text, of at most `sequences` of `length` tokens, too often.

    `most` is how many layers go, or may go at most (see most_layers), None where the model is not known yet: then what
    is surely read counts, for one layer. A budget in seconds cannot be told beforehand.

    Raises:
        CalibrationTooSmall: the message says how much text is needed, and what budget this text allows.
    """
    fitting = sequences if spec.calibration.samples is None else min(sequences, spec.calibration.samples)
    for reading in _readings(spec, length, most):
        if reading.sequences > MOST_TIMES * fitting:
            needed = math.ceil(reading.sequences / MOST_TIMES)
            raise CalibrationTooSmall(
                f"{reading.what} would read {reading.sequences:,} sequences of {length:,} tokens, but the calibration "
                f"text gives no more than {fitting:,}, and each may be read {MOST_TIMES} times at most. Give "
                f"{needed:,} sequences ({needed * length:,} tokens) or more, or at most "
                f"{reading.allowed(MOST_TIMES * fitting)}.",
                loc=("calibration", "source" if fitting == sequences else "samples"),
            )


def most_layers(count: int | None, layers: int) -> int:
    """Layers that go from a model of `layers`: `count`, or where only a search will tell (None) all but one."""
    return layers - 1 if count is None else count


def _readings(spec: JobSpec, length: int, most: int | None) -> list[Reading]:
    parameters = spec.method_as_run
    if isinstance(parameters, CutParameters):
        return []
    found = [] if (training := _training(parameters, length)) is None else [training]
    if isinstance(parameters, ElderParameters) and spec.layers is None:
        rounds = parameters.rounds(most or 1)
        rounded = most is None and parameters.layers_per_round and parameters.gate_fraction  # more rounds may read less
        if parameters.gate_seconds(rounds) is None and not rounded:
            updates, each = parameters.gate_updates(length, rounds), rounds * parameters.gate_batch_size
            found.append(Reading("Learning the layer weights", updates, each, "gate_steps", Fraction(1)))
    return found


def _training(parameters: TrainingParameters, length: int) -> Reading | None:
    """What training reads; None where its budget is no number of sequences."""
    size, updates = parameters.batch_size, parameters.training_updates(length)
    if updates is None:
        return None
    parameter, per_batch = ("tokens", size * length) if parameters.updates is None else ("updates", 1)
    return Reading("Training", updates, size, parameter, per_batch / parameters.training_share)
