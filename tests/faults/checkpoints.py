"""What a job of the fake pipeline writes into its journal, as seen by it and by the tests. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors

CHECKPOINT = "checkpoint"
CHECKPOINTS = 2
"""So many are written by every job, each over the one before."""


def checkpoint_in(page: Path) -> int:
    """The number of the checkpoint on a page of the journal, which must be whole."""
    with safetensors.safe_open(page, framework="numpy") as file:
        number: int = json.loads(file.metadata()["facts"])[CHECKPOINT]
        return number


def last_checkpoint(journal: Path) -> int:
    """Of those that are whole; 0 if there is none."""
    pages = [page for page in journal.glob("*") if page.suffix != ".part"]
    return max(map(checkpoint_in, pages), default=0)
