"""How often a job goes through its calibration text, and where that is too often. Imports no torch.

Text seen again and again teaches the model the text, and not the language: a few times are warned of (Context.
note_repetition), more than `MOST_TIMES` are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from elder_core.errors import CalibrationTooSmall
from elder_core.parameters import CutParameters, ElderParameters, TrainingParameters
from elder_core.spec import JobSpec

MOST_TIMES = 16


@dataclass(frozen=True)
class Reading:
    """`what` reads so many sequences of calibration text; `allowed` says, for a number of them, what may be given."""

    what: str
    sequences: int
    parameters: str
    per_sequence: float

    def allowed(self, sequences: int) -> str:
        """The largest budget that reads at most `sequences`."""
        return f"{self.parameters} {math.floor(sequences * self.per_sequence):,}"


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
    parameters = spec.method
    if isinstance(parameters, CutParameters):
        return []
    found = [] if (training := _training(parameters, length)) is None else [training]
    if isinstance(parameters, ElderParameters) and spec.layers is None:
        rounds = 1 if parameters.layers_per_round is None else math.ceil((most or 1) / parameters.layers_per_round)
        each, updates = rounds * parameters.gate_batch_size, parameters.gate_updates(length, rounds)
        found.append(Reading("Learning the layer weights", each * updates, "gate_steps", 1 / each))
    return found


def _training(parameters: TrainingParameters, length: int) -> Reading | None:
    """What training reads; None where its budget is no number of sequences."""
    size, updates = parameters.batch_size, parameters.training_updates(length)
    if updates is None:
        return None
    given, per_sequence = ("tokens", length) if parameters.updates is None else ("updates", 1 / size)
    return Reading("Training", updates * size, given, per_sequence / parameters.training_share)
