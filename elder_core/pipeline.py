"""One run, from a spec to a checkpoint and its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from elder_core import checkpoints, depth, devices, surgery
from elder_core.calibration.windows import EvaluationText, evaluation_text, window_length
from elder_core.checkpoints import LoadedModel, Provenance, Resolved
from elder_core.evaluation.environment import environment
from elder_core.evaluation.evaluate import EvaluationResult, evaluate
from elder_core.evaluation.single import evaluate_one
from elder_core.evaluation.speed import workload
from elder_core.inspection import Sources, inspect_checkpoint, read_texts, text_path
from elder_core.job import Job, context_of, load, resolve, tokenize
from elder_core.methods.base import Selection
from elder_core.monitor import Monitor
from elder_core.reporting import Outcome, layer_reports, model_summary, report_of
from elder_core.reports.write import write
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
) -> Report:
    """Prune as `spec` says; write the checkpoint to `model_dir`, report.json and report.html to `report_dir`.

    What can be refused is refused before the model is loaded. The checkpoint appears in `model_dir` whole, or not at
    all, and it is that checkpoint, loaded again, that is evaluated; a run that ends while evaluating leaves it there.

    Raises:
        ElderError: see elder_core.errors.
        Cancelled: `cancelled()` answered True; it is asked at every step.
    """
    monitor = Monitor(progress, cancelled)
    with devices.out_of_memory_named():
        with monitor.entered(Stage.RESOLVING):
            checkpoints.check_output(model_dir)
            job = resolve(spec, sources, device)
        with monitor.entered(Stage.CALIBRATING):
            texts = tokenize(job, monitor)
        with monitor.entered(Stage.LOADING):
            loaded = load(job)
        method, context, expected = job.method(), context_of(job, loaded, texts, monitor), None
        with monitor.entered(Stage.SELECTING):
            if spec.target is None:
                selection = depth.choose(job, method, context)
            else:
                selection, expected = depth.choose_with_cost(job, method, context, texts.calibration)
        with monitor.entered(Stage.REGULARIZING):
            training = method.regularize(context, selection.removed)
        outcome = Outcome(
            summary=model_summary(job, loaded.model),
            layers=layer_reports(selection, job.source.info.layers),
            selection=selection,
            expected=expected,
            training=training,
        )
        with monitor.entered(Stage.PRUNING):
            surgery.remove_layers(loaded.model, selection.removed)
        with monitor.entered(Stage.EXPORTING):
            _export(job, loaded, model_dir, outcome)
        tokenizer = loaded.tokenizer
        del context, loaded  # the saved checkpoint is what is measured, without this one's memory
        with monitor.entered(Stage.EVALUATING):
            result = _evaluate(job, tokenizer, texts.evaluation, selection, model_dir, monitor)
    report = report_of(job, outcome, result, monitor)
    write(report, report_dir)
    return report


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
            loaded = load(job)
        with monitor.entered(Stage.SELECTING):
            context = context_of(job, loaded, texts, monitor)
            selection, expected = depth.choose_with_cost(job, job.method(), context, texts.calibration)
    return Plan(
        model=model_summary(job, loaded.model),
        layers=layer_reports(selection, job.source.info.layers),
        weight_label=selection.weight_label,
        expected=expected,
        warnings=tuple(monitor.warnings),
    )


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
        with monitor.entered(Stage.LOADING):
            loaded = checkpoints.load(source, chosen)
            length = window_length(None, source.info.max_positions)
            text = evaluation_text(documents, loaded.tokenizer, length, samples=wanted.samples)
        with monitor.entered(Stage.EVALUATING):
            return evaluate_one(
                loaded.model,
                path=source.path,
                windows=text.windows,
                bytes_per_token=text.bytes_per_token,
                speed=wanted.speed,
                progress=progress,
                check_cancelled=monitor.check_cancelled,
            )


def _export(job: Job, loaded: LoadedModel, model_dir: Path, outcome: Outcome) -> None:
    provenance = Provenance(
        spec=job.spec,
        source=outcome.summary,
        layers=outcome.layers,
        weight_label=outcome.selection.weight_label,
        versions=environment(job.device).versions,
    )
    output = job.spec.output
    checkpoints.save(
        loaded.model,
        model_dir,
        source=job.source.path,
        provenance=provenance,
        dtype=output.dtype,
        max_shard_bytes=output.max_shard_bytes,
    )


def _evaluate(
    job: Job,
    tokenizer: PreTrainedTokenizerBase,
    text: EvaluationText,
    selection: Selection,
    model_dir: Path,
    monitor: Monitor,
) -> EvaluationResult:
    saved = Resolved(model_dir, revision="", info=inspect_checkpoint(model_dir))
    return evaluate(
        lambda: (checkpoints.load(job.source, job.device).model, checkpoints.load(saved, job.device).model),
        tokenizer,
        spec=job.spec.evaluation,
        windows=text.windows,
        bytes_per_token=text.bytes_per_token,
        removed=selection.removed,
        work=workload(text.windows, limit=job.source.info.max_positions, device=job.device),
        dense_path=job.source.path,
        pruned_path=model_dir,
        progress=monitor.progress,
        check_cancelled=monitor.check_cancelled,
        warn=monitor.warn,
    )
