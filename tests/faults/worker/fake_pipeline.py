"""In the fork server, in the place of torch: a pipeline of milliseconds for the real runner to run.

Imported, it puts itself where the runner looks for the real one. Nothing in the product knows of it, so no setting can
choose it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType, SimpleNamespace
from typing import Any

from elder_core import errors
from elder_core.journal import Entry, Journal
from elder_core.monitor import Monitor
from elder_core.spec import JobSpec, Progress, Stage
from elder_service.storage import local
from elder_service.storage.base import JOURNAL, Storage
from elder_service.storage.local import LocalStorage
from tests.faults import gates
from tests.faults.checkpoints import CHECKPOINT, CHECKPOINTS, checkpoint_in
from tests.faults.faulty_storage import Fault, FaultyStorage
from tests.faults.script import FILES, Script, content, script_of

STORAGE_FAULT = "ELDER_TEST_STORAGE"
STAGES = (*Stage,)
CHECKPOINTED = Stage.CALIBRATING


def run(
    spec: JobSpec,
    *,
    model_dir: Path,
    report_dir: Path,
    progress: Callable[[Progress], None],
    cancelled: Callable[[], bool],
    journal: Journal,
    **_: Any,
) -> Any:
    """Go through all stages and leave files whose content depends on the job alone, as the real one does."""
    script, places = script_of(spec), gates.of_this_process()
    job_id, attempt = model_dir.parts[-3], model_dir.parts[-2].removeprefix("attempt-")
    places.executed(job_id, attempt)
    if script.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    journal.begin(job_id)
    monitor = Monitor(cancelled=cancelled, journal=journal)
    for stage in _stages(script, int(attempt)):
        progress(Progress(stage=stage, step=0, total=1, metrics={"loss": 1.0}))
        places.reach(stage)
        _misbehave(script, stage)
        if cancelled() and not script.deaf:
            raise errors.Cancelled
        if stage is CHECKPOINTED:
            places.went_on(job_id, attempt, _checkpoints(monitor))
        gates.pause(script.step_seconds)
    _write(model_dir, report_dir, job_id, script)
    return _report(script)


def _stages(script: Script, attempt: int) -> Iterator[Stage]:
    for stage in STAGES:
        yield stage
        while stage is Stage.REGULARIZING and attempt <= script.endless_attempts:
            gates.pause(0.005)
            yield stage


def _checkpoints(monitor: Monitor) -> int:
    """Write all of them, one over the other; the last that an attempt before this one has written, 0 if none."""
    page = monitor.page("work")
    last: int = page.recalled.facts[CHECKPOINT] if page.recalled else 0
    for number in range(last + 1, CHECKPOINTS + 1):
        page.keep(Entry({CHECKPOINT: number}))
    return last


def _misbehave(script: Script, stage: Stage) -> None:
    if stage is not Stage.SELECTING:
        return
    if script.deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    if script.raises:
        raise getattr(errors, script.raises)(f"The script says so: {script.raises}.")


def _write(model_dir: Path, report_dir: Path, job_id: str, script: Script) -> None:
    for name in FILES:
        path = model_dir.parent / name if name.startswith("model/") else report_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if script.full_disk:
            path = Path("/dev/full")
        with path.open("wb") as file:
            file.write(content(job_id, name))


def _report(script: Script) -> SimpleNamespace:
    """The few fields of a report that the runner takes the job's figures from."""
    before = SimpleNamespace(layers=16, parameters=100, perplexity=10.0)
    after = SimpleNamespace(layers=12, parameters=80, perplexity=float("nan") if script.not_a_number else 11.0)
    evaluation = SimpleNamespace(before=before, after=after, ratios={"decode_tokens_per_second": 1.3})
    return SimpleNamespace(removed_layers=(3, 5, 7, 9), evaluation=evaluation)


class HeldStorage(LocalStorage):
    """With the place `mid-upload`, before the second file of the result."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._puts = 0

    def put(self, key: str, source: Path, sha256: str) -> None:
        self._puts += JOURNAL not in PurePosixPath(key).parts
        if self._puts == 2:
            gates.of_this_process().reach("mid-upload")
        super().put(key, source, sha256)


def storage(root: Path) -> Storage:
    """As the environment says: `FAULT:TIMES`."""
    fault, _, times = os.environ.get(STORAGE_FAULT, "").partition(":")
    held = HeldStorage(root)
    return FaultyStorage(held, Fault(fault), int(times)) if fault else held


def _hold_checkpoints() -> None:
    """Places `mid-checkpoint-1` and so on: its bytes are in the storage, and not yet at its name."""
    bring = local._bring

    def held_bring(source: Path, partial: Path) -> None:
        bring(source, partial)
        if partial.parent.name == JOURNAL:
            gates.of_this_process().reach(f"mid-checkpoint-{checkpoint_in(partial)}")

    local._bring = held_bring


def _in_the_real_ones_place() -> None:
    module = ModuleType("elder_core.pipeline")
    module.run = run  # type: ignore[attr-defined]
    sys.modules["elder_core.pipeline"] = module
    from worker import runner

    publish = runner._publish

    def held_publish(*arguments: Any, **named: Any) -> Any:
        files = publish(*arguments, **named)
        gates.of_this_process().reach("uploaded")
        return files

    runner.LocalStorage = storage  # type: ignore[attr-defined, assignment, misc]
    runner._publish = held_publish


_in_the_real_ones_place()
_hold_checkpoints()
