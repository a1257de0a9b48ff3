"""What is measured of a model, in the words and units of a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from elder_core.reports import formatting
from elder_core.spec import Evaluation, Measurement


@dataclass(frozen=True)
class Figure:
    """One field of `Measurement`: its name for people, whether less of it is better, and how it is written."""

    field: str
    label: str
    lower_is_better: bool
    text: Callable[[float], str]
    ideal_field: str | None = None  # field of `Ideal` that holds the best possible after / before
    in_chart: bool = True

    @property
    def better(self) -> str:
        return "lower is better" if self.lower_is_better else "higher is better"

    def value(self, measurement: Measurement) -> float | None:
        found: float | None = getattr(measurement, self.field)
        return found


FIGURES = (
    Figure("perplexity", "Perplexity", True, formatting.number),
    Figure("bits_per_byte", "Bits per byte", True, formatting.number, in_chart=False),
    Figure("decode_tokens_per_second", "Writing speed (decode)", False, formatting.rate, "decode_speedup"),
    Figure("prefill_tokens_per_second", "Reading speed (prefill)", False, formatting.rate, "prefill_speedup"),
    Figure("decode_latency_seconds", "Time per written token", True, formatting.duration, in_chart=False),
    Figure("prefill_latency_seconds", "Time to first token", True, formatting.duration, in_chart=False),
    Figure("peak_memory_bytes", "Peak memory", True, formatting.size),
    Figure("parameters", "Parameters", True, formatting.count),
    Figure("bytes_on_disk", "Size on disk", True, formatting.size),
    Figure("layers", "Layers", True, formatting.count, in_chart=False),
)


@dataclass(frozen=True)
class Comparison:
    """One figure of both models. `ideal` is the best possible ratio, for speeds only."""

    figure: Figure
    before: float
    after: float
    ratio: float
    ideal: float | None


def comparisons(evaluation: Evaluation) -> list[Comparison]:
    """Every figure that was measured of both models, in the order of `FIGURES`."""
    found = []
    for figure in FIGURES:
        before, after = figure.value(evaluation.before), figure.value(evaluation.after)
        if before is None or after is None or figure.field not in evaluation.ratios:
            continue
        ideal = getattr(evaluation.ideal, figure.ideal_field) if evaluation.ideal and figure.ideal_field else None
        found.append(Comparison(figure, before, after, evaluation.ratios[figure.field], ideal))
    return found
