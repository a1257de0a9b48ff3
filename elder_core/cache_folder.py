"""Where the command line keeps what can be made again, and how what nobody uses leaves it. Imports no torch."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

UNUSED_SECONDS = 30 * 86_400.0
UNFINISHED_PREFIX = ".elder-unfinished-"  # of a file that is being written, and stays where its writer was killed
OURS = re.compile(rf"[0-9a-f]{{64}}\.safetensors|{re.escape(UNFINISHED_PREFIX)}.+")


def user_cache() -> Path:
    """`$ELDER_CACHE`, else `elder` below the user's cache folder."""
    if given := os.environ.get("ELDER_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elder"


def remove_unused(folder: Path, *, seconds: float = UNUSED_SECONDS) -> None:
    """Delete our files in `folder` that were neither written nor marked as used (their mtime) for so long.

    Whoever names the folder may keep other things in it: a name that we do not give is left alone.
    """
    before = time.time() - seconds
    for file in folder.glob("*") if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # another process was faster
            if OURS.fullmatch(file.name) and file.is_file() and file.stat().st_mtime < before:
                file.unlink()
