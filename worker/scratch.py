"""Working space on this machine's disk: a folder for each attempt, in one for its job."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

TRIES = 100


def make(attempt_folder: Path) -> None:
    """With that of its job, which a sweep may take away just before the attempt's is in it: then once more.

    Raises:
        OSError: it cannot be made.
    """
    for _ in range(TRIES):
        with suppress(FileNotFoundError):
            return attempt_folder.mkdir(parents=True, exist_ok=True)
    return attempt_folder.mkdir(parents=True, exist_ok=True)


def clear(attempt_folder: Path) -> None:
    """Delete what an attempt left, and the folder of its job if no other attempt is in it."""
    shutil.rmtree(attempt_folder, ignore_errors=True)
    remove_if_empty(attempt_folder.parent)


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty, or gone already
        folder.rmdir()
