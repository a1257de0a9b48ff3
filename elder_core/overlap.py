"""Evaluation text that calibration sees too, which makes figures better than they are. Imports no torch."""

from __future__ import annotations

from typing import NoReturn

from elder_core.errors import TextOverlap
from elder_core.inspection import Sources, text_path
from elder_core.spec import JobSpec


def check_sources(spec: JobSpec, sources: Sources) -> None:
    """Refuse one file as both texts.

    Raises:
        TextOverlap: it is one, and the job does not allow it.
        TextNotFound, PathForbidden, TextTooLarge: see text_path.
    """
    if spec.evaluation.allow_overlap:
        return
    if text_path(spec.calibration.source, sources).samefile(text_path(spec.evaluation.source, sources)):
        refuse_overlap(f"{spec.evaluation.source} is both the calibration and the evaluation text")


def refuse_overlap(what: str) -> NoReturn:
    """Raises:
    TextOverlap: with what is to be done about it.
    """
    raise TextOverlap(
        f"{what}, so the figures after pruning would be better than on unseen text. Give another evaluation.source, or "
        "set evaluation.allow_overlap, which marks the report.",
        loc=("evaluation", "source"),
    )
