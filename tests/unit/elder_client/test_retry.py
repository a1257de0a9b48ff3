from __future__ import annotations

import httpx2
import pytest

from elder_client.retry import CALLS, OUTAGE, RetryPolicy


def test_the_pause_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy(attempts=6, first_delay=1, max_delay=4)
    delays = [policy.delay_after(failures) for failures in range(1, 7)]
    assert delays[-1] is None
    for delay, longest in zip(delays, [1, 2, 4, 4, 4], strict=False):
        assert delay is not None
        assert 0.75 * longest <= delay <= longest


@pytest.mark.parametrize(("value", "expected"), [("7", 7.0), ("3600", 60.0), ("soon", 0.0), ("-1", 0.0)])
def test_a_longer_pause_that_the_server_asks_for_is_kept(value: str, expected: float) -> None:
    answer = httpx2.Response(503, headers={"retry-after": value})
    assert RetryPolicy(first_delay=0).delay_after(1, answer) == expected


def test_waiting_outlasts_what_a_single_call_does_not() -> None:
    def total(policy: RetryPolicy) -> float:
        return sum(policy.delay_after(failures) or 0 for failures in range(1, policy.attempts))

    assert total(CALLS) < 2
    assert 60 < total(OUTAGE) < 120
