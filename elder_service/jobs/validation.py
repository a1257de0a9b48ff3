"""What can be refused at submission, before anything is queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from elder_core import budgets, inspection
from elder_core.errors import ElderError, SequenceTooLong
from elder_core.inspection import Sources
from elder_core.overlap import check_sources
from elder_core.sizes import count_to_remove
from elder_core.spec import JobSpec
from elder_service.jobs.hub_look import HubLook


@dataclass(frozen=True)
class _Seen:
    """What the rest must know of a model; without arguments, of one that nobody has looked at."""

    default_length: int = 1
    layers: int | None = None
    most_layers: int | None = None


def check(spec: JobSpec, sources: Sources, hub: HubLook) -> None:
    """Raise the error that the job would end with, as far as it can be known without loading the model.

    Of a hub model that is as much as of any other, if the hub answers `hub` in time; if not, it is left to the worker,
    in the stage `resolving`. So is, of a large text, all but its beginning.
    """
    spec.check_target()
    model = _seen(spec, sources, hub)
    length = spec.calibration.sequence_length or model.default_length
    with _blaming("calibration", "source"):
        most_tokens = inspection.check_beginning(inspection.text_path(spec.calibration.source, sources), length)
    with _blaming("evaluation", "source"):
        inspection.check_beginning(inspection.text_path(spec.evaluation.source, sources), model.default_length)
    check_sources(spec, sources)
    if length > 1:
        most_sequences = most_tokens // (length - 1)  # each may begin with a token that the text does not have
        budgets.check_budget(spec, length, most_sequences, model.most_layers, layers=model.layers)


def _seen(spec: JobSpec, sources: Sources, hub: HubLook) -> _Seen:
    if inspection.is_hub_id(spec.model.id):
        return hub.judged(spec.model, partial(_look, spec)) or _Seen()
    with _blaming(*inspection.MODEL):
        folder = inspection.local_model(spec.model.id, sources)
    return _look(spec, folder)


def _look(spec: JobSpec, folder: Path) -> _Seen:
    """All that needs the model's files."""
    with _blaming(*inspection.MODEL):
        info = inspection.inspect_checkpoint(folder)
    most = budgets.most_layers(count_to_remove(spec, info), info.layers)
    _check_sequence_length(spec, info.max_positions)
    return _Seen(inspection.default_sequence_length(info.max_positions), info.layers, most)


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
