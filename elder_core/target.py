"""What a result must keep to, where a job names that instead of how much to remove. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from elder_core.errors import AmbiguousTarget
from elder_core.parameters import Strict

MOST_INCREASE = 1000.0  # times as much perplexity again: more names no model that is of use


class Target(Strict):
    """A limit that the pruned model keeps to; the run finds the number of layers itself. Exactly one is given."""

    max_perplexity_increase: float | None = Field(
        default=None,
        ge=0,
        le=MOST_INCREASE,
        description="Remove the most layers that raise perplexity by no more than this share before any training: 0.1 "
        "allows 10 % more. It is measured on calibration text kept apart from learning.",
    )
    max_bytes: int | None = Field(
        default=None,
        ge=1,
        le=10**16,
        description="Remove the fewest layers with which the saved weights take no more than this many bytes.",
    )
    min_speedup: float | None = Field(
        default=None,
        gt=1,
        le=1000,
        description="Remove the fewest layers that can make decoding this many times as fast, by the time that layers "
        "take in the unpruned model on the worker's machine.",
    )

    def check(self) -> None:
        """Check that one limit is given.

        Raises:
            AmbiguousTarget: none, or several.
        """
        given = [name for name in Target.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            names = ", ".join(Target.model_fields)
            raise AmbiguousTarget(f"Give exactly one of {names} as target; found {found}.")
