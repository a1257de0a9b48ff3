"""A timer: the same action again and again, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Repeat(threading.Thread):
    """Call `action` every `seconds`, first at once, until `stop`; a fault is logged and does not end it."""

    def __init__(self, name: str, seconds: float, stop: threading.Event, action: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._seconds = seconds
        self._stop_event = stop
        self._action = action

    def run(self) -> None:
        while not self._stop_event.is_set():
            try:
                self._action()
            except Exception:  # nobody is above a thread: what is not caught here ends the timer unheard
                _log.exception("timer %s", self.name)
            self._stop_event.wait(self._seconds)
