"""A look at a hub model before its job is taken, if the hub answers in time. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore, Thread

from elder_core.errors import HubUnreachable
from elder_core.spec import ModelRef

MOST_AT_ONCE = 16  # a silent hub must not hold all of the threads that answer requests, of which there are 40

_log = logging.getLogger(__name__)


class HubLook:
    """Looks at hub models, each for at most `seconds`; with 0 never."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._places = BoundedSemaphore(MOST_AT_ONCE)

    @contextmanager
    def outline(self, model: ModelRef) -> Iterator[Path | None]:
        """A folder with what inspection reads of a hub model (see elder_core.hub_outline), gone afterwards.

        None where looking is turned off, and where the hub does not show the model in time: then the log says why, and
        the job is taken all the same, since its worker looks again.

        Raises:
            ModelError: there is no such model, or it cannot be used; the subclass and message say why.
        """
        with ExitStack() as stack:
            yield self._laid(model, stack) if self._seconds else None

    def _laid(self, model: ModelRef, stack: ExitStack) -> Path | None:
        from elder_core.hub_outline import lay_outline  # takes a moment the first time, which is not the hub's fault

        try:
            made = TemporaryDirectory(prefix="elder-hub-", ignore_cleanup_errors=True)  # a late look still writes
            folder = Path(stack.enter_context(made))
            self._start(partial(lay_outline, model.id, model.revision, folder, self._seconds)).result(self._seconds)
        except HubUnreachable as error:
            reason = error.message
        except TimeoutError:
            reason = f"the hub has not shown it within {self._seconds:g} s (ELDER_HUB_LOOK_SECONDS)"
        except OSError as error:
            reason = str(error)
        else:
            return folder
        _log.warning("%s is queued without a look at it; its worker will look: %s", model.id, reason)
        return None

    def _start(self, look: Callable[[], None]) -> Future[None]:
        """Run `look` in a thread that nobody need wait for: name servers and proxies keep to no limit of ours."""
        done: Future[None] = Future()
        if not self._places.acquire(blocking=False):
            done.set_exception(HubUnreachable(f"{MOST_AT_ONCE} others are being looked at"))
            return done

        def run() -> None:
            try:
                look()
                done.set_result(None)
            except BaseException as error:  # raised again where the result is asked for
                done.set_exception(error)
            finally:
                self._places.release()

        Thread(target=run, name="look at the hub", daemon=True).start()
        return done
