"""A look at a hub model before its job is taken, if the hub answers in time. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore, Thread
from typing import TypeVar

from elder_core.errors import HubUnreachable
from elder_core.spec import ModelRef

MOST_AT_ONCE = 16  # a silent hub must not hold all of the threads that answer requests, of which there are 40

Found = TypeVar("Found")

_log = logging.getLogger(__name__)


class HubLook:
    """Looks at hub models, each for at most `seconds`; with 0 never."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._places = BoundedSemaphore(MOST_AT_ONCE)

    def judged(self, model: ModelRef, judge: Callable[[Path], Found]) -> Found | None:
        """What `judge` makes of a folder with what inspection reads of a hub model (see elder_core.hub_outline).

        None where looking is turned off, and where the hub does not show the model, or is not done with it, in time:
        then the log says why, and the job is taken all the same, since its worker looks again.

        Raises:
            ModelError: there is no such model, or it cannot be used; the subclass and message say why.
            ElderError: what `judge` raises.
        """
        if not self._seconds:
            return None
        from elder_core.hub_outline import lay_outline  # takes a moment the first time, which is not the hub's fault

        def look() -> Found:
            # Its own, not its caller's, who may be gone before it: so that a late look leaves nothing.
            with TemporaryDirectory(prefix="elder-hub-") as folder:
                lay_outline(model.id, model.revision, Path(folder), self._seconds)
                return judge(Path(folder))

        try:
            return self._start(look).result(self._seconds)
        except HubUnreachable as error:
            reason = error.message
        except TimeoutError:
            reason = f"it has not been seen within {self._seconds:g} s (ELDER_HUB_LOOK_SECONDS)"
        except OSError as error:
            reason = str(error)
        _log.warning("%s is queued without a look at it; its worker will look: %s", model.id, reason)
        return None

    def _start(self, look: Callable[[], Found]) -> Future[Found]:
        """Run `look` in a thread that nobody need wait for: name servers and proxies keep to no limit of ours."""
        done: Future[Found] = Future()
        if not self._places.acquire(blocking=False):
            done.set_exception(HubUnreachable(f"{MOST_AT_ONCE} others are being looked at"))
            return done

        def run() -> None:
            try:
                found = self._in_place(look)
            except BaseException as error:  # raised again where the result is asked for
                done.set_exception(error)
            else:
                done.set_result(found)

        Thread(target=run, name="look at the hub", daemon=True).start()
        return done

    def _in_place(self, look: Callable[[], Found]) -> Found:
        try:
            return look()
        finally:
            self._places.release()
