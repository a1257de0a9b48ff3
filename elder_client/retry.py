"""When to try again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass

import httpx2


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off: `attempts` tries in all, the pause doubling from `first_delay` to `max_delay` seconds.

    Each pause is shortened by up to a quarter at random, so that many clients do not come back together. A server
    that names a longer pause (`Retry-After`) is obeyed up to `max_retry_after` seconds.
    """

    attempts: int = 4
    first_delay: float = 0.25
    max_delay: float = 8.0
    max_retry_after: float = 60.0

    def delay_after(self, failures: int, answer: httpx2.Response | None = None) -> float | None:
        """Seconds to pause after `failures` failures in a row; None when it is time to give up."""
        if failures >= self.attempts:
            return None
        delay: float = min(self.max_delay, self.first_delay * 2 ** (failures - 1))
        jittered = delay * random.uniform(0.75, 1)
        return max(jittered, self._asked_for(answer))

    def _asked_for(self, answer: httpx2.Response | None) -> float:
        value = answer.headers.get("retry-after", "") if answer is not None else ""
        return min(float(value), self.max_retry_after) if value.isdecimal() else 0.0  # a date is not worth its parsing


CALLS = RetryPolicy()
"""One call: gives up after about 2 seconds."""

OUTAGE = RetryPolicy(attempts=14, max_delay=10)
"""Waiting for a job or a download: outlasts a restart of the server of about a minute and a half."""
