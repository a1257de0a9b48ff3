"""What a run tells of itself: the model, the layers, and the report that holds everything it measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from transformers import PreTrainedModel

from elder_core import devices, surgery
from elder_core.checkpoints import Resolved
from elder_core.evaluation.environment import environment
from elder_core.evaluation.evaluate import EvaluationResult
from elder_core.job import Job
from elder_core.methods.base import Selection
from elder_core.monitor import Monitor
from elder_core.reports.charts import spread
from elder_core.reports.targets import missed
from elder_core.spec import Expected, LayerReport, ModelRef, ModelSummary, Report, TrainingPoint

MOST_POINTS = 1000
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What a run did to the model, before it was evaluated. `warnings` are those of a cut, which may have no report."""

    summary: ModelSummary
    layers: tuple[LayerReport, ...]
    selection: Selection
    expected: Expected | None
    training: tuple[TrainingPoint, ...]
    warnings: tuple[str, ...] = ()


def model_summary(model: ModelRef, source: Resolved, parameters: int) -> ModelSummary:
    """The unpruned model, which `source` is and which has so many parameters."""
    info = source.info
    return ModelSummary(
        id=model.id,
        revision=source.revision,
        architecture=info.architecture,
        layers=info.layers,
        parameters=parameters,
        dtype=info.dtype,
    )


def parameters_of(model: PreTrainedModel) -> int:
    """How many parameters a model has, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def layer_reports(selection: Selection, num_layers: int) -> tuple[LayerReport, ...]:
    """Every layer, with what it was chosen or kept by."""
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


def report_of(job: Job, outcome: Outcome, result: EvaluationResult, monitor: Monitor) -> Report:
    """The report of a run that has ended; a target that was missed is warned of."""
    target = job.spec.target
    if target is not None and (warning := missed(target, result.evaluation)):
        monitor.warn(warning)
    return Report(
        created_at=datetime.now(UTC),
        spec=job.spec,
        model=outcome.summary,
        removed_layers=outcome.selection.removed,
        layers=outcome.layers,
        weight_label=outcome.selection.weight_label,
        expected=outcome.expected,
        gate_path=thinned(outcome.selection.gate_path),
        training=thinned(outcome.training),
        evaluation=result.evaluation.model_copy(
            update={"overlapping_documents": job.evaluation.shared, "copied_share": job.evaluation.copied}
        ),
        generations=result.generations,
        stage_seconds=monitor.stage_seconds,
        resumptions=monitor.resumptions,
        peak_memory_bytes=max(monitor.earlier_peak_bytes, devices.peak_memory_bytes(job.device)),
        environment=environment(job.device),
        warnings=tuple(monitor.warnings),
    )


def thinned(points: Sequence[T]) -> tuple[T, ...]:
    """At most `MOST_POINTS` of `points`, evenly spread, the first and the last among them."""
    return tuple(points[place] for place in spread(len(points), MOST_POINTS))
