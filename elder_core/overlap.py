"""Evaluation text that calibration sees too, which makes figures better than they are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from elder_core.errors import TextOverlap
from elder_core.inspection import Sources, text_path
from elder_core.spec import JobSpec

MOST_SHARED = 0.01  # of the evaluation text's bytes: corpora of one document a line repeat headings and short lines
MOST_COPIED = 0.05  # of the evaluation text's words: those in passages that calibration has too


@dataclass(frozen=True)
class Parted:
    """The evaluation text as it is measured on.

    `shared` of the `documents` are calibration documents too, and the share `copied` of their words stands in passages
    that calibration has, where that is allowed; `left_out` were such documents, and are no longer among them.
    """

    documents: list[str]
    shared: int = 0
    left_out: int = 0
    copied: float = 0.0

    def warning(self) -> str | None:
        """What is to be said of it to people."""
        if self.shared:
            return (
                f"{self.shared:,} of {len(self.documents):,} evaluation documents are calibration documents too; the "
                "figures after pruning are better than they would be on unseen text."
            )
        if self.copied:
            return (
                f"{self.copied:.1%} of the evaluation text's words stand in passages that calibration has too; the "
                "figures after pruning are better than they would be on unseen text."
            )
        if self.left_out:
            return (
                f"{self.left_out:,} of {self.left_out + len(self.documents):,} evaluation documents are calibration "
                "documents too, and were left out of the evaluation text."
            )
        return None


def check_sources(spec: JobSpec, sources: Sources) -> None:
    """Refuse one file as both texts.

    Raises:
        TextOverlap: it is one, and the job does not allow it.
        TextNotFound, PathForbidden, TextTooLarge: see text_path.
    """
    if spec.evaluation.allow_overlap:
        return
    if text_path(spec.calibration.source, sources).samefile(text_path(spec.evaluation.source, sources)):
        _refuse(f"{spec.evaluation.source} is both the calibration and the evaluation text")


def part(calibration: Sequence[str], evaluation: Sequence[str], *, allowed: bool) -> Parted:
    """Evaluation text without what calibration sees too, if that is little, or with all of it where it is `allowed`.

    Documents are compared without white space at their ends. Then passages of 32 words are, since the same text
    may be cut into other documents.

    Raises:
        TextOverlap: more than `MOST_SHARED` of the text's bytes are of such documents, or more than `MOST_COPIED` of
            its words in such passages, and that is not allowed.
    """
    from elder_core.passages import PASSAGE, copied  # of numpy, which the API does without

    seen = {document.strip() for document in calibration}
    unseen = [document for document in evaluation if document.strip() not in seen]
    shared = len(evaluation) - len(unseen)
    if allowed and shared:
        return Parted(list(evaluation), shared=shared)
    total = _bytes(evaluation)
    lost = (total - _bytes(unseen)) / total if shared else 0.0
    if lost > MOST_SHARED:
        _refuse(
            f"{shared:,} of {len(evaluation):,} evaluation documents are calibration documents too, with {lost:.2%} "
            f"of the text's bytes; up to {MOST_SHARED:.0%} would be left out"
        )
    share = copied(calibration, unseen)
    if share <= MOST_COPIED:
        return Parted(unseen, left_out=shared)
    if not allowed:
        _refuse(
            f"{share:.1%} of the evaluation text's words stand in passages of {PASSAGE} words or more that the "
            f"calibration text has too; up to {MOST_COPIED:.0%} may"
        )
    return Parted(unseen, copied=share)


def _bytes(documents: Iterable[str]) -> int:
    return sum(len(document.encode()) for document in documents)


def _refuse(what: str) -> NoReturn:
    """Raises:
    TextOverlap: with what is to be done about it.
    """
    raise TextOverlap(
        f"{what}, so the figures after pruning would be better than on unseen text. Give another evaluation.source, or "
        "set evaluation.allow_overlap, which marks the report.",
        loc=("evaluation", "source"),
    )
