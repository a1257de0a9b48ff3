"""What happens to the model: layers are chosen, it is prepared, they go, and the result is saved and measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from elder_core import checkpoints, surgery
from elder_core.checkpoints import LoadedModel, Provenance, Resolved
from elder_core.evaluation.environment import environment
from elder_core.evaluation.evaluate import DenseFigures, EvaluationResult, evaluate
from elder_core.evaluation.speed import workload
from elder_core.inspection import inspect_checkpoint
from elder_core.job import Job, Texts, context_of, load
from elder_core.methods.base import Context, Method, Selection
from elder_core.monitor import Monitor
from elder_core.reporting import Outcome, layer_reports, model_summary
from elder_core.spec import Expected, Stage

Choose = Callable[[Method, Context], tuple[Selection, Expected | None]]


def prune(job: Job, texts: Texts, choose: Choose, model_dir: Path, monitor: Monitor) -> Outcome:
    """Load the job's model, prune it and save it to `model_dir`; when this returns, its memory is free again.

    Raises:
        ElderError: see Method, and checkpoints.load and save.
        Cancelled: the caller ended the run.
    """
    with monitor.entered(Stage.LOADING):
        loaded = load(job)
    method, context = job.method(), context_of(job, loaded, texts, monitor)
    with monitor.entered(Stage.SELECTING):
        selection, expected = choose(method, context)
        surgery.removal_changes(loaded.model, selection.removed)  # refused now rather than after training
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
    return outcome


def evaluate_saved(
    job: Job,
    texts: Texts,
    selection: Selection,
    model_dir: Path,
    monitor: Monitor,
    known: DenseFigures | None = None,
) -> EvaluationResult:
    """Measure the checkpoint in `model_dir` beside the one that it came from; `known` as evaluate has it.

    Raises:
        NonFiniteLoss, Cancelled: see evaluate.
    """
    saved = Resolved(model_dir, revision="", info=inspect_checkpoint(model_dir))
    text = texts.evaluation
    with monitor.entered(Stage.EVALUATING):
        return evaluate(
            lambda: (checkpoints.load(job.source, job.device).model, checkpoints.load(saved, job.device).model),
            texts.tokenizer,
            spec=job.spec.evaluation,
            windows=text.windows,
            bytes_per_token=text.bytes_per_token,
            removed=selection.removed,
            work=workload(text.windows, limit=job.source.info.max_positions, device=job.device),
            dense_path=job.source.path,
            pruned_path=model_dir,
            known=known,
            progress=monitor.progress,
            check_cancelled=monitor.check_cancelled,
            warn=monitor.warn,
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
