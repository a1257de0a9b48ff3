"""Evaluation text that calibration sees too: how much of it is left out, refused or allowed."""

from __future__ import annotations

import pytest

from elder_core.errors import TextOverlap
from elder_core.overlap import Parted, part

LINES = [f"{number:099}" for number in range(99)]


def test_up_to_one_per_cent_of_the_bytes_is_left_out() -> None:
    heading = "=" * 99
    assert part([heading, "other"], [*LINES, heading], allowed=False) == Parted(LINES, left_out=1)
    with pytest.raises(TextOverlap, match=r"1 of 99 evaluation documents.*1\.01%.*allow_overlap") as caught:
        part([heading], [*LINES[1:], heading], allowed=False)
    assert caught.value.loc == ("evaluation", "source")


def test_bytes_decide_and_not_documents() -> None:
    headings = ["a\n"] * 90
    parted = part(["a"], [*LINES, *headings, "b" * 9_000], allowed=False)
    assert (len(parted.documents), parted.left_out) == (100, 90)
    assert "90 of 190 evaluation documents" in str(parted.warning())
    with pytest.raises(TextOverlap):
        part(["ä" * 60], [*LINES, "ä" * 60], allowed=False)  # 120 bytes of 9,921


def test_where_it_is_allowed_all_stays_and_is_counted_without_white_space_at_the_ends() -> None:
    parted = part(["a", "b\n"], [" b", "c", "a", "a"], allowed=True)
    assert parted == Parted([" b", "c", "a", "a"], shared=3)
    assert "3 of 4 evaluation documents" in str(parted.warning())


@pytest.mark.parametrize("allowed", [True, False])
def test_nothing_shared_is_nothing_to_say(allowed: bool) -> None:
    parted = part(["a"], ["b"], allowed=allowed)
    assert parted == Parted(["b"])
    assert parted.warning() is None
