"""Working space on this machine's disk: a folder for each attempt, in one for its job."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path


def clear(attempt_folder: Path) -> None:
    """Delete what an attempt left, and the folder of its job if no other attempt is in it."""
    shutil.rmtree(attempt_folder, ignore_errors=True)
    remove_if_empty(attempt_folder.parent)


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty, or gone already
        folder.rmdir()
