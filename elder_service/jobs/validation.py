"""What can be refused at submission, before anything is queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from elder_core import budgets, inspection
from elder_core.errors import ElderError, SequenceTooLong
from elder_core.inspection import Sources
from elder_core.overlap import check_sources
from elder_core.sizes import count_to_remove
from elder_core.spec import JobSpec, ModelRef
from elder_service.jobs.hub_look import HubLook


def check(spec: JobSpec, sources: Sources, hub: HubLook) -> None:
    """Raise the error that the job would end with, as far as it can be known without loading the model.

    Of a hub model that is as much as of any other, if the hub answers `hub` in time; if not, it is left to the worker,
    in the stage `resolving`. So is, of a large text, all but its beginning.
    """
    spec.check_target()
    default_length, most = 1, None  # of a model that nobody has looked at
    with _folder(spec.model, sources, hub) as folder:
        if folder is not None:
            with _blaming(*inspection.MODEL):
                info = inspection.inspect_checkpoint(folder)
            most = budgets.most_layers(count_to_remove(spec, info), info.layers)
            _check_sequence_length(spec, info.max_positions)
            default_length = inspection.default_sequence_length(info.max_positions)
    length = spec.calibration.sequence_length or default_length
    with _blaming("calibration", "source"):
        most_tokens = inspection.check_beginning(inspection.text_path(spec.calibration.source, sources), length)
    with _blaming("evaluation", "source"):
        inspection.check_beginning(inspection.text_path(spec.evaluation.source, sources), default_length)
    check_sources(spec, sources)
    if length > 1:
        budgets.check_budget(spec, length, most_tokens // length, most)


@contextmanager
def _folder(model: ModelRef, sources: Sources, hub: HubLook) -> Iterator[Path | None]:
    """What inspection reads of a model; None of a hub model that the hub does not show in time."""
    with ExitStack() as stack:
        with _blaming(*inspection.MODEL):
            on_hub = inspection.is_hub_id(model.id)
            folder = stack.enter_context(hub.outline(model)) if on_hub else inspection.local_model(model.id, sources)
        yield folder


@contextmanager
def _blaming(*loc: str) -> Iterator[None]:
    """Name the field of the request in an error that cannot know it; `model.revision` is known to be at fault."""
    try:
        yield
    except ElderError as error:
        if error.loc[:1] != loc[:1]:
            error.loc = loc
        raise


def _check_sequence_length(spec: JobSpec, max_positions: int | None) -> None:
    length = spec.calibration.sequence_length
    if length is not None and max_positions is not None and length > max_positions:
        raise SequenceTooLong(
            f"sequence_length is {length}; {spec.model.id} takes at most {max_positions} tokens.",
            loc=("calibration", "sequence_length"),
        )
