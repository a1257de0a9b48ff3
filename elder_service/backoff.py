"""How long to wait before another try."""

from __future__ import annotations

MOST_DOUBLINGS = 12  # more are beyond any limit, and in the end beyond what a float can hold


def backoff_seconds(first_seconds: float, times: int, most_seconds: float) -> float:
    """Twice as long each time, within a limit; `times` counts from 1."""
    return min(most_seconds, first_seconds * 2.0 ** min(times - 1, MOST_DOUBLINGS))
