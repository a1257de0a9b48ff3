from __future__ import annotations

import threading

from elder_service.repeat import Repeat


def test_a_timer_goes_on_after_any_fault() -> None:
    stop, calls = threading.Event(), []

    def action() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            stop.set()
        raise (TypeError, KeyError, AssertionError)[len(calls) - 1]

    timer = Repeat("test", 0.001, stop, action)
    timer.start()
    timer.join(30)
    assert calls == [0, 1, 2]
