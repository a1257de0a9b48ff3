"""A job's journal in storage: whichever worker makes the next attempt goes on from it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from elder_core.disk import file_sha256
from elder_service.errors import StorageFailed
from elder_service.storage.base import Storage


@dataclass(frozen=True)
class StoredPages:
    """Pages below `prefix`; each is made in `scratch` and moved. See elder_core.journal.Pages."""

    storage: Storage
    prefix: str
    scratch: Path

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        made = self.scratch / name
        self.scratch.mkdir(parents=True, exist_ok=True)
        try:
            write(made)
            self.storage.put(f"{self.prefix}/{name}", made, file_sha256(made))
        finally:
            made.unlink(missing_ok=True)

    def find(self, name: str) -> Path | None:
        try:
            return self.storage.path(f"{self.prefix}/{name}")
        except StorageFailed:
            return None
