"""What can be refused at submission, before anything is queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from elder_core import inspection
from elder_core.errors import ElderError, SequenceTooLong, TextTooShort
from elder_core.inspection import Sources
from elder_core.spec import JobSpec


def check(spec: JobSpec, sources: Sources) -> None:
    """Raise the error that the job would end with, as far as it can be known without loading the model.

    The config of a hub model is looked at by the worker, in the stage `resolving`.
    """
    spec.check_target()
    if not inspection.is_hub_id(spec.model.id):
        with _blaming("model", "id"):
            info = inspection.inspect_checkpoint(inspection.local_model(spec.model.id, sources))
        spec.count_to_remove(info.layers)
        _check_sequence_length(spec, info.max_positions)
    for part, source in (("calibration", spec.calibration.source), ("evaluation", spec.evaluation.source)):
        with _blaming(part, "source"):
            _check_text(source, spec.calibration.sequence_length, sources)


@contextmanager
def _blaming(*loc: str) -> Iterator[None]:
    """Name the field of the request in an error that cannot know it."""
    try:
        yield
    except ElderError as error:
        error.loc = loc
        raise


def _check_sequence_length(spec: JobSpec, max_positions: int | None) -> None:
    length = spec.calibration.sequence_length
    if length is not None and max_positions is not None and length > max_positions:
        raise SequenceTooLong(
            f"sequence_length is {length}; {spec.model.id} takes at most {max_positions} tokens.",
            loc=("calibration", "sequence_length"),
        )


def _check_text(source: str, sequence_length: int | None, sources: Sources) -> None:
    texts = inspection.read_texts(inspection.text_path(source, sources))
    size = sum(len(text.encode()) for text in texts)
    # A token is a byte or more, so fewer bytes than tokens can never fill a sequence.
    if sequence_length is not None and size < sequence_length:
        raise TextTooShort(
            f"{source} holds {size} bytes of text, too few for one sequence of {sequence_length} tokens; "
            "give more text or a smaller sequence_length."
        )
