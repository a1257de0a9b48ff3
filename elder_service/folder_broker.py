"""kombu's transport by folders, which embedded mode uses, without what ends a worker: a message that is not whole.

Whoever sends one makes its file and then writes it. A listener that comes between the two, or after a sender that was
killed there, finds nothing that is JSON.
"""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem

SCHEME = "elder-folders"

_log = logging.getLogger(__name__)


class Channel(filesystem.Channel):
    """Passes over such a message: it was a hint, and workers look by themselves as well."""

    def _get(self, queue: Any, timeout: Any = None) -> Any:
        try:
            return super()._get(queue)  # type: ignore[no-untyped-call]
        except ValueError as error:
            _log.warning("A hint was not whole and is passed over: %s", error)
            raise Empty from error


class Transport(filesystem.Transport):
    """See the module."""

    Channel = Channel


TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"
