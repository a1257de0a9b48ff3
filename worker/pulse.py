"""How a worker shows that it is well."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

from elder_service.settings import Settings

_log = logging.getLogger(__name__)


class Pulse:
    """A file that the worker touches whenever the database answered it, looking for a job or running one.

    So it gets old when the worker hangs, when its claim loop is dead, or when it cannot reach the database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def beat(self) -> None:
        try:
            self.path.touch()
        except OSError as error:  # a full disk must not end the job that runs
            _log.warning("could not touch %s: %s", self.path, error)

    def end(self) -> None:
        self.path.unlink(missing_ok=True)


def pulse_of(settings: Settings) -> Pulse:
    """That of the worker on this machine; `elder-server health` looks at its file."""
    return Pulse(settings.data_dir / f"worker-{socket.gethostname()}.alive")
