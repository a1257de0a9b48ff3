"""Several depths of one model by one method, with everything shared that does not depend on the depth."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from elder_core import checkpoints, devices
from elder_core.errors import AmbiguousTarget, DuplicateLayers, OutputExists
from elder_core.evaluation.evaluate import Figures
from elder_core.execution import evaluate_saved, prune
from elder_core.inspection import Sources
from elder_core.job import Job, Texts, context_of, load, resolve, tokenize
from elder_core.methods.base import Selection
from elder_core.methods.expressible import chooser
from elder_core.monitor import Monitor
from elder_core.parameters import Strict
from elder_core.reporting import report_of
from elder_core.reports.write import write
from elder_core.spec import REMOVALS, Evaluation, JobSpec, ModelSummary, Progress, Report, Stage

SWEEP_FILE = "sweep.json"


class SweepDepth(Strict):
    """One depth that is done: `folder`, below that of the sweep, holds its checkpoint and report."""

    folder: str
    removed_layers: tuple[int, ...]
    evaluation: Evaluation
    warnings: tuple[str, ...]


class Sweep(Strict):
    """Contents of `sweep.json`, version 1: the depths that are done, in the order of their layers.

    `spec` is what they have in common, and names no depth; `identity` stands for all that decides what comes out (see
    Job.identity), and is None in a file of before it was told.
    """

    schema_version: Literal[1] = 1
    created_at: datetime
    model: ModelSummary
    spec: JobSpec
    identity: str | None = None
    method: str
    depths: tuple[SweepDepth, ...]


def sweep(
    spec: JobSpec,
    *,
    out: Path,
    sources: Sources,
    counts: Sequence[int] = (),
    ratios: Sequence[float] = (),
    device: str = "auto",
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    finished: Callable[[Report], None] = lambda _: None,
) -> Sweep:
    """Prune the model of `spec`, which says nothing of how much to remove, to each of several depths.

    Texts are read, layers chosen (expressible.chooser) and the dense model evaluated once; every depth begins from the
    dense weights. Depth n goes to `out/removed-n`, checkpoint and report together, which appears whole or not at all;
    `out/sweep.json` tells of those that are done, also by earlier sweeps of the same model and spec into `out`, which
    are not done again, and `finished` of each in turn. So a sweep that ended early goes on when it is asked for again.
    What is chosen for a depth can differ a little from a run of that depth alone, for a method that learns once for all
    depths, and more where rounds share a budget (gate_fraction). The report of each counts the time of what is shared,
    and the peak of memory while choosing.

    Raises:
        AmbiguousTarget, DuplicateLayers: no depth is named, or one twice, or the spec names one.
        OutputExists: `out` holds a sweep of another model or spec, or something else where a depth would go.
        ElderError, Cancelled: as pipeline.run; the depths that are done stay as they are.
    """
    specs = _specs(spec, counts, ratios)
    shared = Monitor(progress, cancelled)
    with devices.out_of_memory_named():
        with shared.entered(Stage.RESOLVING):
            jobs = _jobs(specs, sources, device)
            common = replace(next(iter(jobs.values())), spec=spec)
            identity = common.identity()
            told = _earlier(out, common, identity)
            earlier = () if told is None else told.depths
            done = {len(depth.removed_layers) for depth in earlier}
            counts = sorted({*jobs, *done})  # as a sweep that ended early was asked for
            jobs = {count: job for count, job in jobs.items() if count not in done}
            if told is not None and not jobs:
                return told
            for count in jobs:
                checkpoints.check_output(_folder(out, count))
        deepest = jobs[max(jobs)]
        with shared.entered(Stage.CALIBRATING):
            texts = tokenize(deepest, shared)
        selections = _select(deepest, texts, counts, jobs, shared)
        shared.earlier_peak_bytes = devices.peak_memory_bytes(deepest.device)  # every depth counts anew
        reports: list[Report] = []
        known: Figures | None = None
        for count, job in jobs.items():
            monitor = replace(shared, stage_seconds=dict(shared.stage_seconds), warnings=list(shared.warnings))
            with _appearing(_folder(out, count)) as partial:
                report, known = _one(job, texts, selections[count], partial, monitor, known)
                reports.append(report)
                told = _tell(
                    common, identity, earlier, reports, out
                )  # before the folder is there: without it, it says nothing
            finished(report)
    assert told is not None
    return told


def _specs(spec: JobSpec, counts: Sequence[int], ratios: Sequence[float]) -> list[JobSpec]:
    """The spec of every depth.

    Raises:
        AmbiguousTarget, InvalidRatio, LayersOutOfRange: see each.
    """
    given = [name for name in REMOVALS if getattr(spec, name) is not None]
    if given or not (counts or ratios):
        found = f"the job names {' and '.join(given)}" if given else "found none"
        raise AmbiguousTarget(f"A sweep takes its depths as ratios or numbers of layers, and nowhere else; {found}.")
    specs = [spec.model_copy(update={"ratio": ratio}) for ratio in ratios]
    specs += [spec.model_copy(update={"layers_to_remove": count}) for count in counts]
    for one in specs:
        one.check_target()
    return specs


def _jobs(specs: Sequence[JobSpec], sources: Sources, device: str) -> dict[int, Job]:
    """Number of layers to remove → job, ascending; what they name is found and read once.

    Raises:
        DuplicateLayers: two depths are the same.
    """
    first = resolve(specs[0], sources, device)
    jobs: dict[int, Job] = {}
    for spec in specs:
        count = spec.count_to_remove(first.source.info.layers)
        if count in jobs:
            raise DuplicateLayers(f"Two depths of the sweep remove {count} layers; name each once.")
        jobs[count] = replace(first, spec=spec, count=count)
    return dict(sorted(jobs.items()))


def _select(
    job: Job, texts: Texts, counts: Sequence[int], wanted: Iterable[int], monitor: Monitor
) -> dict[int, Selection]:
    """The layers to remove for each depth that is `wanted`, chosen as for all `counts`.

    When this returns, the model's memory is free again.
    """
    with monitor.entered(Stage.LOADING):
        loaded = load(job, texts)
    with monitor.entered(Stage.SELECTING):
        selected = chooser(job.method(), context_of(job, loaded, texts, monitor), counts)
        return {count: selected(count) for count in wanted}


def _one(
    job: Job, texts: Texts, selection: Selection, folder: Path, monitor: Monitor, known: Figures | None
) -> tuple[Report, Figures]:
    """One depth, from the dense weights to what is in its folder."""
    outcome = prune(job, texts, lambda *_: (selection, None), folder, monitor)
    result = evaluate_saved(job, texts, selection, folder, monitor, known)
    report = report_of(job, outcome, result, monitor)
    write(report, folder)
    return report, result.dense


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to work in, which takes its place at the end; if it ends before, nothing is left."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a sweep that was killed
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _folder(out: Path, count: int) -> Path:
    return out / _name(count)


def _name(count: int) -> str:
    return f"removed-{count}"


def _earlier(out: Path, job: Job, identity: str) -> Sweep | None:
    """What earlier sweeps into `out` left of what `job` asks for, with the depths whose folders are still there.

    Raises:
        OutputExists: the sweep there is of another revision of the model, or differs in its spec, or in what else
            decides what comes out, or cannot be read.
    """
    spec, revision = job.spec, job.source.revision
    file = out / SWEEP_FILE
    if not file.exists():
        return None
    try:
        told = Sweep.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise OutputExists(f"{file} cannot be read as a sweep of this version; give another folder.") from error
    if told.model.revision != revision:
        raise OutputExists(
            f"{file} is of another model, {told.model.id} at {told.model.revision}; give another folder."
        )
    alike = told.spec.model_copy(update={"model": spec.model})  # the revision says what the model is
    if differing := [name for name in JobSpec.model_fields if getattr(alike, name) != getattr(spec, name)]:
        raise OutputExists(f"{file} is of a sweep with other values of {', '.join(differing)}; give another folder.")
    if told.identity not in (None, identity):
        raise OutputExists(
            f"{file} is of a sweep with other texts under the same names, another kind of device, or other versions of "
            "elder, torch or transformers; give another folder."
        )
    there = tuple(depth for depth in told.depths if (out / depth.folder).is_dir())
    return told.model_copy(update={"depths": there})


def _tell(job: Job, identity: str, earlier: Sequence[SweepDepth], reports: Sequence[Report], out: Path) -> Sweep:
    """Write `sweep.json` for the depths that are done, those of earlier sweeps among them."""
    depths = {depth.folder: depth for depth in (*earlier, *map(_depth, reports))}
    told = Sweep(
        created_at=datetime.now(UTC),
        model=reports[0].model,
        spec=job.spec,
        identity=identity,
        method=job.spec.method.name,
        depths=tuple(sorted(depths.values(), key=lambda depth: len(depth.removed_layers))),
    )
    unfinished = out / f".{SWEEP_FILE}"
    unfinished.write_text(told.model_dump_json(indent=2) + "\n", encoding="utf-8")
    unfinished.replace(out / SWEEP_FILE)
    return told


def _depth(report: Report) -> SweepDepth:
    return SweepDepth(
        folder=_name(len(report.removed_layers)),
        removed_layers=report.removed_layers,
        evaluation=report.evaluation,
        warnings=report.warnings,
    )
