"""In the fork server, in the place of torch: a pipeline of milliseconds for the real runner to run.

Imported, it puts itself where the runner looks for the real one. Nothing in the product knows of it, so no setting can
choose it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from elder_core import errors
from elder_core.spec import JobSpec, Progress, Stage
from elder_service.storage.local import LocalStorage
from tests.faults import gates
from tests.faults.script import FILES, Script, content, script_of

STAGES = (*Stage,)


def run(
    spec: JobSpec,
    *,
    model_dir: Path,
    report_dir: Path,
    progress: Callable[[Progress], None],
    cancelled: Callable[[], bool],
    **_: Any,
) -> Any:
    """Go through all stages and leave files whose content depends on the job alone, as the real one does."""
    script, places = script_of(spec), gates.of_this_process()
    job_id, attempt = model_dir.parts[-3], model_dir.parts[-2].removeprefix("attempt-")
    places.executed(job_id, attempt)
    if script.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for stage in _stages(script, int(attempt)):
        progress(Progress(stage=stage, step=0, total=1, metrics={"loss": 1.0}))
        places.reach(stage)
        _misbehave(script, stage)
        if cancelled() and not script.deaf:
            raise errors.Cancelled
        time.sleep(script.step_seconds)
    _write(model_dir, report_dir, job_id, script)
    return _report(script)


def _stages(script: Script, attempt: int) -> Iterator[Stage]:
    for stage in STAGES:
        yield stage
        while stage is Stage.REGULARIZING and attempt <= script.endless_attempts:
            time.sleep(0.005)
            yield stage


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


def _in_the_real_ones_place() -> None:
    module = ModuleType("elder_core.pipeline")
    module.run = run  # type: ignore[attr-defined]
    sys.modules["elder_core.pipeline"] = module
    from worker import runner

    _hold_uploads(runner)


def _hold_uploads(runner: ModuleType) -> None:
    """Places `mid-upload`, before the second file, and `uploaded`, before the result is told."""
    put, publish = LocalStorage.put, runner._publish
    places = gates.of_this_process()
    uploads = 0

    def held_put(storage: LocalStorage, key: str, source: Path) -> None:
        nonlocal uploads
        uploads += 1
        if uploads == 2:
            places.reach("mid-upload")
        put(storage, key, source)

    def held_publish(*arguments: Any, **named: Any) -> Any:
        files = publish(*arguments, **named)
        places.reach("uploaded")
        return files

    LocalStorage.put = held_put  # type: ignore[method-assign]
    runner._publish = held_publish  # type: ignore[attr-defined]


_in_the_real_ones_place()
