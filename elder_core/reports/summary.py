"""A report in a few sentences."""

from __future__ import annotations

from elder_core.registry import find_method
from elder_core.reports import formatting
from elder_core.spec import Evaluation, Report


def summary(report: Report) -> str:
    """What was done and what it cost, for a reader who knows nothing of the method."""
    removed = sorted(report.removed_layers)
    noun = "layer" if len(removed) == 1 else "layers"
    method = find_method(report.spec.method.name).title
    return (
        f"{method} removed {len(removed)} of the {report.model.layers} layers of {report.model.id} "
        f"({noun} {formatting.listing(removed)}). {_gain(report.evaluation)} {_price(report.evaluation)}"
    )


def _gain(evaluation: Evaluation) -> str:
    smaller = f"The model has {1 - evaluation.ratios['parameters']:.0%} fewer parameters".replace("%", " %")
    speedup = evaluation.ratios.get("decode_tokens_per_second")
    if speedup is None:
        return f"{smaller}."
    ideal = f", of an ideal {evaluation.ideal.decode_speedup:.2f}" if evaluation.ideal else ""
    return f"{smaller} and writes text {speedup:.2f} times as fast{ideal}."


def _price(evaluation: Evaluation) -> str:
    before, after = evaluation.before.perplexity, evaluation.after.perplexity
    text = "text that it partly saw before" if evaluation.flattered else "text that it never saw"
    return (
        f"Its perplexity on {text}, where lower is better, went from "
        f"{formatting.number(before)} to {formatting.number(after)} ({formatting.change(after / before)})."
    )
