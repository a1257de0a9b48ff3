"""Places in worker and job where a test can hold a process, so that a fault strikes it exactly there.

A test holds a point, waits until a process has reached it, does its worst, and opens the point again. Nothing waits at
a point that nobody holds.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

FOLDER = "ELDER_TEST_GATES"
"""The variable that names the folder; it also marks every process of one cluster."""


class Gates:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    # The test's side -------------------------------------------------------------------------------------------------

    def hold(self, point: str) -> None:
        (self._folder / f"{point}.held").touch()

    def open(self, point: str) -> None:
        (self._folder / f"{point}.held").unlink(missing_ok=True)
        self._note(point).unlink(missing_ok=True)

    def held_process(self, point: str) -> int | None:
        """The process that waits at `point`."""
        return int(self._note(point).read_text()) if self._note(point).exists() else None

    def executions(self) -> list[tuple[str, int]]:
        """Job and attempt of every run of the pipeline that ever began, in order."""
        return [(job_id, int(attempt)) for job_id, attempt in self._noted("executions")]

    def resumptions(self) -> list[tuple[str, int, int]]:
        """Job, attempt and checkpoint of every run that went on from one, in order."""
        return [(job_id, int(attempt), int(number)) for job_id, attempt, number in self._noted("resumptions")]

    def _noted(self, what: str) -> list[list[str]]:
        log = self._folder / what
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    # The process's side ----------------------------------------------------------------------------------------------

    def reach(self, point: str) -> None:
        """Wait while `point` is held."""
        if not (self._folder / f"{point}.held").exists():
            return
        note = self._note(point)
        half = note.with_suffix(f".{os.getpid()}")
        half.write_text(str(os.getpid()))
        half.replace(note)
        while (self._folder / f"{point}.held").exists():
            pause(0.005)

    def executed(self, job_id: str, attempt: str) -> None:
        self._add("executions", job_id, attempt)

    def went_on(self, job_id: str, attempt: str, checkpoint: int) -> None:
        """From `checkpoint`, of an attempt before; 0 if there was none."""
        if checkpoint:
            self._add("resumptions", job_id, attempt, str(checkpoint))

    def _add(self, what: str, *words: str) -> None:
        with (self._folder / what).open("a") as log:
            log.write(" ".join(words) + "\n")  # one write of less than a page: never mixed with another's

    def _note(self, point: str) -> Path:
        return self._folder / f"{point}.reached"


def of_this_process() -> Gates:
    return Gates(Path(os.environ[FOLDER]))


def pause(seconds: float) -> None:
    """Not time.sleep, which fails under a libfaketime that leaves the monotonic clock alone."""
    threading.Event().wait(seconds)
