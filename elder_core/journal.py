"""What a run has found so far, kept outside it, so that a run that was ended goes on where it was.

A run is a function of its spec, its model and its texts: begun again, it asks the same questions in the same order.
The journal keeps answers, whole ones and those that are still being worked out, each on a page of its own; begun again,
the run passes quickly over what is known. Every draw in elder_core is made from the seed and its place in the run, so
no page holds the state of a random generator unless a loop has one of its own.

A page is one safetensors file: the tensors, and as metadata the rest and the run's identity. It is written whole or
not at all, and pages need not agree with each other: each is right by itself.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from elder_core.disk import sync
from elder_core.errors import ElderError

SECONDS = 60.0
COST_FACTOR = 40  # a page is written at most as often as makes it cost a fortieth of the time
_PART = ".elder-part"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """What stands on a page: `facts` that JSON can tell, and `tensors`."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Pages(Protocol):
    """Where pages are. Both methods may raise OSError or ElderError."""

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` make a file, which then takes the place of the page `name`, whole or not at all."""

    def find(self, name: str) -> Path | None:
        """The file of the page `name`; None if there is none."""


@dataclass(frozen=True)
class Folder:
    """Pages in a folder of this machine, which appears with the first."""

    path: Path

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(f"*{_PART}"):  # by a run that was killed while writing
            left.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.path, prefix=name, suffix=_PART, delete=False) as file:
            part = Path(file.name)
            try:
                write(part)
                sync(part)
                part.replace(self.path / name)
                sync(self.path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def find(self, name: str) -> Path | None:
        path = self.path / name
        return path if path.is_file() else None


class Journal:
    """Writes pages when they are due: `seconds` after the last, more rarely where writing takes long.

    Without `pages` it keeps nothing. `stopping` says that the run is about to be ended and may write once more.
    What cannot be written costs time if the run is ended, and no run: it is logged.
    """

    def __init__(
        self, pages: Pages | None = None, *, seconds: float = SECONDS, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._pages = pages
        self._seconds = seconds
        self._stopping = stopping
        self._identity: str | None = None
        self._due_at = time.monotonic() + seconds
        self.spent_seconds = 0.0  # on writing

    def begin(self, identity: str) -> None:
        """Keep pages from now on, as those of the run that `identity` stands for; others' are as if not there."""
        self._identity = identity

    def due(self) -> bool:
        """Whether what is being worked out should be kept now."""
        return self._open() and (self._stopping() or time.monotonic() >= self._due_at)

    def keep(self, name: str, entry: Entry) -> None:
        """Write `entry` as the page `name`."""
        if not self._open():
            return
        started = time.monotonic()
        try:
            assert self._pages is not None
            self._pages.write(name, lambda path: self._save(path, entry))
        except (OSError, ElderError, RuntimeError, safetensors.SafetensorError) as error:
            _log.warning("the page %s of the journal is not kept: %s", name, error)
        ended = time.monotonic()
        self.spent_seconds += ended - started
        self._due_at = ended + max(self._seconds, COST_FACTOR * (ended - started))

    def recall(self, name: str) -> Entry | None:
        """The page `name`; None if it is not there, cannot be read, or is another run's."""
        if not self._open():
            return None
        try:
            assert self._pages is not None
            path = self._pages.find(name)
            return None if path is None else self._load(path)
        except (OSError, ElderError, safetensors.SafetensorError, ValueError) as error:
            _log.warning("the page %s of the journal is not used: %s", name, error)
            return None

    def _open(self) -> bool:
        return self._pages is not None and self._identity is not None

    def _save(self, path: Path, entry: Entry) -> None:
        assert self._identity is not None
        told = {"identity": self._identity, "facts": json.dumps(entry.facts)}
        save_file({name: tensor.detach().contiguous() for name, tensor in entry.tensors.items()}, path, told)

    def _load(self, path: Path) -> Entry | None:
        with safetensors.safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            if told.get("identity") != self._identity:
                _log.warning("%s is of another run: another spec, model, text or version", path)
                return None
            facts: dict[str, Any] = json.loads(told["facts"])
            return Entry(facts, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
