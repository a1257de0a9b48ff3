"""A job's target in words, and whether a result keeps to it. Imports no torch."""

from __future__ import annotations

from elder_core.reports import formatting
from elder_core.spec import Evaluation, Expected
from elder_core.target import Target


def asked(target: Target) -> str:
    """at most 10 % more perplexity; at most 14.6 MB; at least 1.3 times as fast."""
    if target.max_perplexity_increase is not None:
        return f"at most {100 * target.max_perplexity_increase:.4g} % more perplexity"
    if target.max_bytes is not None:
        return f"at most {formatting.size(target.max_bytes)}"
    return f"at least {target.min_speedup:.4g} times as fast"


def before_training(expected: Expected) -> str:
    """What was expected of the chosen layers, in one sentence."""
    after = expected.perplexity_after
    growth = "no number" if after is None else formatting.change(after / expected.perplexity_before)
    text = "sequences kept apart from learning" if expected.kept_apart else "calibration sequences"
    speed = "" if expected.decode_speedup is None else f", ideal decode speed ×{expected.decode_speedup:.2f}"
    return (
        f"{expected.layers} {'layer' if expected.layers == 1 else 'layers'}: perplexity {growth} before training, on "
        f"{expected.sequences:,} {text}{speed}, {formatting.size(expected.bytes_on_disk)} on disk"
    )


def measured(target: Target, evaluation: Evaluation) -> str | None:
    """The figure that the target is about, as it came out; None where it was not measured."""
    if target.max_perplexity_increase is not None:
        return f"perplexity {formatting.change(evaluation.ratios['perplexity'])}"
    if target.max_bytes is not None:
        return f"{evaluation.after.bytes_on_disk:,} bytes"
    speed = evaluation.ratios.get("decode_tokens_per_second")
    return None if speed is None else f"decode speed ×{speed:.3f}"


def missed(target: Target, evaluation: Evaluation) -> str | None:
    """A warning where the result does not keep to the target, or where that is not known; None where it does."""
    if target.max_perplexity_increase is not None:
        misses = evaluation.ratios["perplexity"] - 1 > target.max_perplexity_increase
    elif target.max_bytes is not None:
        misses = evaluation.after.bytes_on_disk > target.max_bytes
    elif (speed := evaluation.ratios.get("decode_tokens_per_second")) is None:
        return f"Whether the target, {asked(target)}, is met is not known: evaluation.speed is off."
    else:
        misses = target.min_speedup is not None and speed < target.min_speedup
    return f"The target, {asked(target)}, is missed: measured {measured(target, evaluation)}." if misses else None
