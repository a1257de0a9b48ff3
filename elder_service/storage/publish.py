"""From a job's folder into storage, in spite of a storage that fails now and then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from elder_core.disk import file_sha256
from elder_service.errors import StorageFailed
from elder_service.storage.base import Storage, StoredFile

# Between tries. What lasts longer ends the attempt, and the job is tried again as a whole.
DELAYS_SECONDS = (0.2, 1.0, 3.0)

_log = logging.getLogger(__name__)


def publish(
    storage: Storage, key: str, name: str, kind: Literal["model", "report"], path: Path, wait: Callable[[float], object]
) -> StoredFile:
    """Move the file `path` to `key`, verified by its sha256 and tried again after a while; `wait` takes seconds.

    Raises:
        StorageFailed: of the last try.
    """
    size_bytes, digest = path.stat().st_size, file_sha256(path)
    for delay in DELAYS_SECONDS:
        try:
            storage.put(key, path, digest)
            break
        except StorageFailed as error:
            _log.warning("%s Trying again in %.1f s.", error.message, delay)
            wait(delay)
    else:
        storage.put(key, path, digest)
    return StoredFile(name=name, kind=kind, key=key, size_bytes=size_bytes, sha256=digest)
