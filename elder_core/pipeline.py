"""What the library does with a spec: a run, from it to a checkpoint and its report; a plan; a sweep; a cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from elder_core import checkpoints, depth, devices
from elder_core.calibration.token_cache import TokenCache
from elder_core.calibration.windows import evaluation_windows, largest_id, leading_token, window_length
from elder_core.evaluation.single import evaluate_one
from elder_core.evaluation.speed import workload
from elder_core.execution import cut_saved, evaluate_saved, prune
from elder_core.inspection import Sources, read_texts, text_path
from elder_core.job import Job, Texts, context_of, load, resolve, tokenize
from elder_core.journal import Journal
from elder_core.methods import expressible
from elder_core.methods.base import Context, Method, Selection
from elder_core.monitor import Monitor
from elder_core.reporting import Outcome, layer_reports, model_summary, parameters_of, report_of
from elder_core.reports.write import write
from elder_core.sizes import count_to_remove
from elder_core.spec import (
    EvaluationSpec,
    Expected,
    JobSpec,
    LayerReport,
    Measurement,
    ModelRef,
    ModelSummary,
    Progress,
    Report,
    Stage,
)
from elder_core.sweep import Sweep, sweep

__all__ = ["Plan", "Sweep", "cut", "measure", "plan", "run", "sweep"]


@dataclass(frozen=True)
class Plan:
    """Which layers a job would remove, the weights that say so, and what that is expected to cost."""

    model: ModelSummary
    layers: tuple[LayerReport, ...]
    weight_label: str
    expected: Expected
    warnings: tuple[str, ...]


def run(
    spec: JobSpec,
    *,
    model_dir: Path,
    report_dir: Path,
    sources: Sources,
    device: str = "auto",
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    journal: Journal | None = None,
) -> Report:
    """Prune as `spec` says; write the checkpoint to `model_dir`, report.json and report.html to `report_dir`.

    What can be refused is refused before the model is loaded. The checkpoint appears in `model_dir` whole, or not at
    all, and it is that checkpoint, loaded again, that is evaluated; a run that ends while evaluating leaves it there.
    What it finds on the way goes to `journal`; given that again, the same run goes on from it, and on a CPU like that
    before ends with the same checkpoint to the bit, where the budget is not one of time.

    Raises:
        ElderError: see elder_core.errors.
        Cancelled: `cancelled()` answered True; it is asked at every step.
    """
    monitor = Monitor(progress, cancelled, journal=journal or Journal())
    with devices.out_of_memory_named():
        with monitor.entered(Stage.RESOLVING):
            checkpoints.check_output(model_dir)
            job = resolve(spec, sources, device)
            monitor.journal.begin(job.identity())
        with monitor.entered(Stage.CALIBRATING):
            texts = tokenize(job, monitor)
        outcome = prune(job, texts, partial(_choose, job, texts), model_dir, monitor)
        result = evaluate_saved(job, texts, outcome.selection, model_dir, monitor)
    report = report_of(job, outcome, result, monitor)
    write(report, report_dir)
    return report


def _choose(job: Job, texts: Texts, method: Method, context: Context) -> tuple[Selection, Expected | None]:
    """The cost of a choice is measured where a target asks for it."""
    if job.spec.target is None:
        return depth.choose(job, method, context), None
    return depth.choose_with_cost(job, method, context, texts.calibration)


def plan(
    spec: JobSpec,
    *,
    sources: Sources,
    device: str = "auto",
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Plan:
    """Choose the layers as `run` would, measure what is lost without them, and stop there: nothing is written.

    Raises:
        ElderError, Cancelled: as `run`.
    """
    monitor = Monitor(progress, cancelled)
    with devices.out_of_memory_named():
        with monitor.entered(Stage.RESOLVING):
            job = resolve(spec, sources, device)
        with monitor.entered(Stage.CALIBRATING):
            texts = tokenize(job, monitor)
        with monitor.entered(Stage.LOADING):
            loaded = load(job, texts)
        with monitor.entered(Stage.SELECTING):
            context = context_of(job, loaded, texts, monitor)
            selection, expected = depth.choose_with_cost(job, job.method(), context, texts.calibration)
            expressible.check(loaded.model, selection, monitor)
    return Plan(
        model=model_summary(spec.model, job.source, parameters_of(loaded.model)),
        layers=layer_reports(selection, job.source.info.layers),
        weight_label=selection.weight_label,
        expected=expected,
        warnings=tuple(monitor.warnings),
    )


def cut(
    spec: JobSpec,
    *,
    model_dir: Path,
    sources: Sources,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Remove the layers that `spec` names and write the checkpoint to `model_dir`: no model is loaded, no text read.

    Raises:
        ElderError, Cancelled: as `run`.
    """
    monitor = Monitor(progress, cancelled)
    with monitor.entered(Stage.RESOLVING):
        spec.check_target()
        checkpoints.check_output(model_dir)
        source = checkpoints.resolve(spec.model, sources)
        count_to_remove(spec, source.info)
    return cut_saved(spec, source, model_dir, monitor)


def measure(
    model: ModelRef,
    wanted: EvaluationSpec,
    *,
    sources: Sources,
    device: str = "auto",
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Measurement:
    """Measure one checkpoint as `wanted` says; nothing is generated and nothing written.

    Raises:
        ElderError, Cancelled: as `run`.
    """
    monitor = Monitor(progress, cancelled)
    with devices.out_of_memory_named():
        with monitor.entered(Stage.RESOLVING):
            chosen = devices.choose(device)
            source = checkpoints.resolve(model, sources)
            documents = read_texts(text_path(wanted.source, sources))
        with monitor.entered(Stage.CALIBRATING):
            length = window_length(None, source.info.max_positions)
            tokenizer = checkpoints.load_tokenizer(source.path)
            tokens = TokenCache(sources.token_cache).stream(
                documents, tokenizer, checkpoints.tokenizer_hash(source), field="evaluation"
            )
            leading, largest = leading_token(tokenizer), largest_id(tokenizer, (tokens,))
            text = evaluation_windows(documents, tokens, length, leading=leading, samples=wanted.samples)
        with monitor.entered(Stage.EVALUATING):
            return evaluate_one(
                lambda: checkpoints.load(source, chosen, largest_id=largest).model,
                path=source.path,
                windows=text.windows,
                bytes_per_token=text.bytes_per_token,
                work=workload(text.windows, limit=source.info.max_positions, device=chosen) if wanted.speed else None,
                progress=progress,
                check_cancelled=monitor.check_cancelled,
            )
