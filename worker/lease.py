"""The worker's own watch over a lease: its job's process is gone before the lease is, whatever else hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

LEASE_MARGIN = 0.2  # share of the lease kept back: the process is gone before the lease is


class LeaseWatch:
    """Calls `lost` once, if the lease is not extended in time, from a thread of its own.

    The thread that renews the lease cannot do it: a call to a database that has frozen returns late or never. All times
    are of the monotonic clock, in seconds, and from *before* the claim or renewal was sent, since the database's clock
    starts the lease while the worker still waits for the answer.
    """

    def __init__(self, lease_seconds: float, claimed_at: float) -> None:
        self._seconds = lease_seconds * (1 - LEASE_MARGIN)
        self._ends_at = claimed_at + self._seconds
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def extend(self, renewed_at: float) -> None:
        self._ends_at = renewed_at + self._seconds

    def over(self) -> bool:
        return time.monotonic() >= self._ends_at

    def watch(self, lost: Callable[[], None]) -> LeaseWatch:
        self._thread = threading.Thread(target=self._run, args=(lost,), name="lease", daemon=True)
        return self

    def __enter__(self) -> None:
        assert self._thread is not None, "watch() says what to do"
        self._thread.start()

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        """Once this returns, `lost` is not called any more."""
        assert self._thread is not None
        self._done.set()
        self._thread.join()

    def _run(self, lost: Callable[[], None]) -> None:
        while not self._done.wait(max(0.0, self._ends_at - time.monotonic())):
            if self.over():
                lost()
                return
