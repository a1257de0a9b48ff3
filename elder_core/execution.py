"""What happens to the model: layers are chosen, it is prepared, they go, and the result is saved and measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import TypeAdapter

from elder_core import checkpoints, cutting, devices, surgery
from elder_core.checkpoints import LoadedModel, Provenance, Resolved
from elder_core.evaluation.environment import environment
from elder_core.evaluation.evaluate import EvaluationResult, Figures, evaluate
from elder_core.evaluation.speed import workload
from elder_core.job import Job, Texts, context_of, load
from elder_core.journal import Entry
from elder_core.methods import expressible
from elder_core.methods.base import Context, Method, Selection, named_layers
from elder_core.monitor import Monitor
from elder_core.parameters import CutParameters
from elder_core.reporting import Outcome, layer_reports, model_summary, parameters_of
from elder_core.sizes import narrowing, parameter_count
from elder_core.spec import Expected, JobSpec, Stage

Choose = Callable[[Method, Context], tuple[Selection, Expected | None]]

_CHOICE: TypeAdapter[tuple[Selection, Expected | None]] = TypeAdapter(tuple[Selection, Expected | None])


def prune(job: Job, texts: Texts, choose: Choose, model_dir: Path, monitor: Monitor) -> Outcome:
    """Load the job's model, prune it and save it to `model_dir`; when this returns, its memory is free again.

    The method cut loads nothing: see cut_saved.

    Raises:
        ElderError: see Method, and checkpoints.load and save.
        Cancelled: the caller ended the run.
    """
    if isinstance(job.spec.method, CutParameters):
        return cut_saved(job.spec, job.source, model_dir, monitor)
    with monitor.entered(Stage.LOADING):
        loaded = load(job, texts)
    method, context = job.method(), context_of(job, loaded, texts, monitor)
    with monitor.entered(Stage.SELECTING):
        selection, expected = _choice(choose, method, context)
        expressible.check(loaded.model, selection, monitor)  # refused now rather than after training
    with monitor.entered(Stage.REGULARIZING):
        training = method.regularize(context, selection.removed)
    outcome = Outcome(
        summary=model_summary(job.spec.model, job.source, parameters_of(loaded.model)),
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


def _choice(choose: Choose, method: Method, context: Context) -> tuple[Selection, Expected | None]:
    """What `choose` answers, or did in a run that was ended."""
    page = context.monitor.page("choice")
    if page.recalled is not None:
        return _CHOICE.validate_python(page.recalled.facts["choice"])
    found = choose(method, context)
    page.keep(Entry({"choice": _CHOICE.dump_python(found, mode="json")}))
    return found


def cut_saved(spec: JobSpec, source: Resolved, model_dir: Path, monitor: Monitor) -> Outcome:
    """Write the checkpoint `source` without the layers that `spec` names to `model_dir`, without loading it.

    Raises:
        ElderError: see cutting.cut.
        Cancelled: the caller ended the run.
    """
    assert spec.layers is not None  # JobSpec.check_target
    selection = named_layers(spec.layers)
    outcome = Outcome(
        summary=model_summary(spec.model, source, parameter_count(source.info)),
        layers=layer_reports(selection, source.info.layers),
        selection=selection,
        expected=None,
        training=(),
        warnings=(*source.info.warnings, *narrowing(source.info, spec.output)),
    )
    with monitor.entered(Stage.EXPORTING):
        cutting.cut(
            source,
            selection.removed,
            model_dir,
            provenance=_provenance(spec, outcome, "cpu"),
            output=spec.output,
            step=monitor.step,
        )
    return outcome


def evaluate_saved(
    job: Job,
    texts: Texts,
    selection: Selection,
    model_dir: Path,
    monitor: Monitor,
    known: Figures | None = None,
) -> EvaluationResult:
    """Measure the checkpoint in `model_dir` beside the one that it came from; `known` as evaluate has it.

    Raises:
        NonFiniteLoss, Cancelled: see evaluate.
    """
    saved = Resolved(model_dir, revision="", info=checkpoints.checked(model_dir))
    text = texts.evaluation
    with monitor.entered(Stage.EVALUATING):
        devices.release_memory(job.device)  # memory is measured in a process of its own
        return evaluate(
            lambda: checkpoints.load(job.source, job.device, largest_id=texts.largest_id).model,
            lambda: checkpoints.load(saved, job.device, largest_id=texts.largest_id).model,
            texts.tokenizer,
            spec=job.spec.evaluation,
            windows=text.windows,
            bytes_per_token=text.bytes_per_token,
            removed=selection.removed,
            work=workload(text.windows, limit=job.source.info.max_positions, device=job.device),
            dense_path=job.source.path,
            pruned_path=model_dir,
            monitor=monitor,
            known=known,
        )


def _export(job: Job, loaded: LoadedModel, model_dir: Path, outcome: Outcome) -> None:
    output = job.spec.output
    checkpoints.save(
        loaded.model,
        model_dir,
        source=job.source.path,
        provenance=_provenance(job.spec, outcome, job.device),
        dtype=output.dtype,
        max_shard_bytes=output.max_shard_bytes,
    )


def _provenance(spec: JobSpec, outcome: Outcome, device: torch.device | str) -> Provenance:
    return Provenance(
        spec=spec,
        source=outcome.summary,
        layers=outcome.layers,
        weight_label=outcome.selection.weight_label,
        versions=environment(device).versions,
    )
