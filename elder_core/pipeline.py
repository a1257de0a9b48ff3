"""One run, from a spec to a checkpoint and its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from elder_core import checkpoints, devices, surgery
from elder_core.calibration.windows import (
    EvaluationText,
    calibration_windows,
    evaluation_text,
    shared_documents,
    token_stream,
    window_length,
)
from elder_core.checkpoints import LoadedModel, Provenance, Resolved
from elder_core.evaluation.environment import environment
from elder_core.evaluation.evaluate import EvaluationResult, evaluate
from elder_core.evaluation.single import evaluate_one
from elder_core.evaluation.speed import workload
from elder_core.inspection import Sources, inspect_checkpoint, read_texts, text_path
from elder_core.methods.base import Context, Method, Selection, named_layers
from elder_core.monitor import Monitor
from elder_core.registry import find_method
from elder_core.reports.write import write
from elder_core.spec import (
    EvaluationSpec,
    JobSpec,
    LayerReport,
    Measurement,
    ModelRef,
    ModelSummary,
    Progress,
    Report,
    Stage,
    TrainingPoint,
)


@dataclass(frozen=True)
class Plan:
    """Which layers a job would remove, and the weights that say so."""

    model: ModelSummary
    layers: tuple[LayerReport, ...]
    weight_label: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    """A spec with everything it names found: documents are read, the target fits the model."""

    spec: JobSpec
    device: torch.device
    source: Resolved
    count: int
    window_length: int
    calibration: list[str]
    evaluation: list[str]

    def method(self) -> Method:
        return find_method(self.spec.method.name).load()(self.spec.method)


@dataclass(frozen=True)
class _Texts:
    """`calibration` `[samples, length]` and the evaluation text, as tokens."""

    calibration: torch.Tensor
    evaluation: EvaluationText


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
            job = _resolve(spec, sources, device)
        with monitor.entered(Stage.LOADING):
            loaded = _load(job)
        with monitor.entered(Stage.CALIBRATING):
            texts = _tokenize(job, loaded.tokenizer, monitor)
        method, context = job.method(), _context(job, loaded, texts, monitor)
        with monitor.entered(Stage.SELECTING):
            selection = _select(job, method, context)
        with monitor.entered(Stage.REGULARIZING):
            training = method.regularize(context, selection.removed)
        summary = _summary(job, loaded)
        layers = _layer_reports(selection, job.source.info.layers)
        with monitor.entered(Stage.PRUNING):
            surgery.remove_layers(loaded.model, selection.removed)
        with monitor.entered(Stage.EXPORTING):
            _export(job, loaded, model_dir, summary, layers, selection.weight_label)
        tokenizer = loaded.tokenizer
        del context, loaded  # the saved checkpoint is what is measured, without this one's memory
        with monitor.entered(Stage.EVALUATING):
            result = _evaluate(job, tokenizer, texts.evaluation, selection, model_dir, monitor)
    report = _report(job, summary, layers, selection, training, result, monitor)
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
    """Choose the layers as `run` would, and stop there: nothing is written.

    Raises:
        ElderError, Cancelled: as `run`.
    """
    monitor = Monitor(progress, cancelled)
    with devices.out_of_memory_named():
        with monitor.entered(Stage.RESOLVING):
            job = _resolve(spec, sources, device)
        with monitor.entered(Stage.LOADING):
            loaded = _load(job)
        with monitor.entered(Stage.CALIBRATING):
            texts = _tokenize(job, loaded.tokenizer, monitor)
        with monitor.entered(Stage.SELECTING):
            selection = _select(job, job.method(), _context(job, loaded, texts, monitor))
    return Plan(
        model=_summary(job, loaded),
        layers=_layer_reports(selection, job.source.info.layers),
        weight_label=selection.weight_label,
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


# The stages ------------------------------------------------------------------------------------------------------


def _resolve(spec: JobSpec, sources: Sources, device: str) -> _Job:
    spec.check_target()
    chosen = devices.choose(device)
    source = checkpoints.resolve(spec.model, sources)
    return _Job(
        spec=spec,
        device=chosen,
        source=source,
        count=spec.count_to_remove(source.info.layers),
        window_length=window_length(spec.calibration.sequence_length, source.info.max_positions),
        calibration=read_texts(text_path(spec.calibration.source, sources)),
        evaluation=read_texts(text_path(spec.evaluation.source, sources)),
    )


def _load(job: _Job) -> LoadedModel:
    devices.reset_peak_memory(job.device)
    return checkpoints.load(job.source, job.device)


def _tokenize(job: _Job, tokenizer: PreTrainedTokenizerBase, monitor: Monitor) -> _Texts:
    wanted = job.spec.calibration
    stream = token_stream(job.calibration, tokenizer)
    windows = calibration_windows(stream, job.window_length, samples=wanted.samples, seed=wanted.seed)
    if wanted.samples is not None and len(windows) < wanted.samples:
        monitor.warn(
            f"{wanted.samples:,} calibration sequences were asked for, but the text fills only {len(windows):,} of "
            f"{job.window_length:,} tokens."
        )
    if shared := shared_documents(job.calibration, job.evaluation):
        monitor.warn(
            f"{shared:,} of {len(job.evaluation):,} evaluation documents are calibration documents too; "
            "the figures after pruning are better than they would be on unseen text."
        )
    length = window_length(None, job.source.info.max_positions)
    return _Texts(windows, evaluation_text(job.evaluation, tokenizer, length, samples=job.spec.evaluation.samples))


def _context(job: _Job, loaded: LoadedModel, texts: _Texts, monitor: Monitor) -> Context:
    return Context(
        model=loaded.model, windows=texts.calibration, seed=job.spec.seed, device=job.device, monitor=monitor
    )


def _select(job: _Job, method: Method, context: Context) -> Selection:
    if job.spec.layers is not None:
        return named_layers(job.spec.layers)
    return method.select(context, job.count)


def _export(
    job: _Job, loaded: LoadedModel, model_dir: Path, summary: ModelSummary, layers: Sequence[LayerReport], label: str
) -> None:
    provenance = Provenance(
        spec=job.spec,
        source=summary,
        layers=tuple(layers),
        weight_label=label,
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
    job: _Job,
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


# What is told of them --------------------------------------------------------------------------------------------


def _summary(job: _Job, loaded: LoadedModel) -> ModelSummary:
    info = job.source.info
    return ModelSummary(
        id=job.spec.model.id,
        revision=job.source.revision,
        architecture=info.architecture,
        layers=info.layers,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        dtype=info.dtype,
    )


def _layer_reports(selection: Selection, num_layers: int) -> tuple[LayerReport, ...]:
    new_index = surgery.layer_map(num_layers, selection.removed)
    return tuple(
        LayerReport(
            index=index,
            weight=None if selection.weights is None else selection.weights[index],
            removed=index in selection.removed,
            new_index=new_index.get(index),
        )
        for index in range(num_layers)
    )


def _report(
    job: _Job,
    summary: ModelSummary,
    layers: tuple[LayerReport, ...],
    selection: Selection,
    training: tuple[TrainingPoint, ...],
    result: EvaluationResult,
    monitor: Monitor,
) -> Report:
    return Report(
        created_at=datetime.now(UTC),
        spec=job.spec,
        model=summary,
        removed_layers=selection.removed,
        layers=layers,
        weight_label=selection.weight_label,
        gate_path=selection.gate_path,
        training=training,
        evaluation=result.evaluation,
        generations=result.generations,
        stage_seconds=monitor.stage_seconds,
        peak_memory_bytes=devices.peak_memory_bytes(job.device),
        environment=environment(job.device),
        warnings=tuple(monitor.warnings),
    )
