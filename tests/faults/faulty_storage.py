"""A storage that goes wrong as often as it is told to, around any that follows the protocol."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from elder_service.errors import StorageFailed
from elder_service.storage.base import Storage
from tests.faults.gates import pause

SLOW_SECONDS = 0.3


class Fault(StrEnum):
    FAILS = "fails"
    DENIES = "denies"
    SLOW = "slow"
    WRITES_HALF = "writes half"
    WRITES_OTHERS = "writes other bytes"
    FULL = "full"
    LOSES_THE_ANSWER = "loses the answer"


@dataclass
class FaultyStorage:
    """`times` calls of `put` go wrong, then all is well."""

    inner: Storage
    fault: Fault
    times: int

    def put(self, key: str, source: Path, sha256: str) -> None:
        if self.times <= 0:
            self.inner.put(key, source, sha256)
            return
        self.times -= 1
        match self.fault:
            case Fault.FAILS:
                raise StorageFailed(f"Could not store {key}: the connection was reset.")
            case Fault.DENIES:
                raise StorageFailed(f"Could not store {key}: Permission denied.")
            case Fault.FULL:
                raise StorageFailed(f"Could not store {key}: No space left on device.")
            case Fault.SLOW:
                pause(SLOW_SECONDS)
                self.inner.put(key, source, sha256)
            case Fault.WRITES_HALF | Fault.WRITES_OTHERS:
                self.inner.put(key, self._spoilt(source), sha256)
            case Fault.LOSES_THE_ANSWER:
                self.inner.put(key, self._copy(source), sha256)
                raise StorageFailed(f"Could not store {key}: the connection was reset.")

    def _copy(self, source: Path) -> Path:
        return Path(shutil.copyfile(source, source.with_name(f"{source.name}.copy")))

    def _spoilt(self, source: Path) -> Path:
        """What arrives of the file."""
        content = source.read_bytes()
        arriving = source.with_name(f"{source.name}.arriving")
        arriving.write_bytes(content[: len(content) // 2] if self.fault is Fault.WRITES_HALF else content[::-1])
        return arriving

    def path(self, key: str) -> Path:
        return self.inner.path(key)

    def read(self, key: str) -> bytes:
        return self.inner.read(key)

    def delete_prefix(self, prefix: str) -> None:
        self.inner.delete_prefix(prefix)

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        return self.inner.list_prefixes(prefix)
