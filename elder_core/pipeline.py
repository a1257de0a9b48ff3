"""One run, from a spec to a checkpoint and its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from elder_core.inspection import Sources
from elder_core.spec import JobSpec, Progress, Report


def run(
    spec: JobSpec,
    *,
    model_dir: Path,
    report_dir: Path,
    sources: Sources,
    device: str = "auto",
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Report:
    """Prune as `spec` says; write the checkpoint to `model_dir`, report.json and report.html to `report_dir`.

    Raises:
        ElderError: see elder_core.errors.
        Cancelled: `cancelled()` answered True; it is asked at every step.
    """
    raise NotImplementedError
