"""Evaluation text that calibration sees too: how much of it is left out, refused or allowed."""

from __future__ import annotations

import pytest

from elder_core import passages
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


WORDS = [f"word{number}" for number in range(4_000)]


def text(first: int, last: int) -> str:
    return " ".join(WORDS[first:last])


@pytest.mark.parametrize(
    ("calibration", "evaluation"),
    [
        ([text(0, 1000), text(1000, 2000)], [text(0, 2000)]),
        ([text(0, 2000)], [text(0, 1000), text(1000, 2000)]),
        ([text(0, 1000)], [text(0, 1000) + " and one more"]),
        ([text(0, 1000)], [text(0, 1000).replace(" word5", "\nword5")]),
        ([text(0, 1000)], [text(960, 2000), text(0, 60)]),
    ],
    ids=["joined", "parted", "longer", "wrapped", "a part of it"],
)
def test_the_same_text_in_other_documents_is_found(calibration: list[str], evaluation: list[str]) -> None:
    with pytest.raises(TextOverlap, match=r"% of the evaluation text's words stand in passages.*allow_overlap"):
        part(calibration, evaluation, allowed=False)
    parted = part(calibration, evaluation, allowed=True)
    assert parted.documents == evaluation
    assert "stand in passages that calibration has too" in str(parted.warning())


def test_the_share_of_copied_words_is_that_of_their_passages() -> None:
    calibration, evaluation = [text(0, 1000)], [text(950, 1900)]  # 50 of 950 words
    with pytest.raises(TextOverlap, match=r"^5\.3% of the evaluation text's words"):
        part(calibration, evaluation, allowed=False)
    few = [text(960, 1960)]  # 40 of 1,000
    assert part(calibration, few, allowed=False) == Parted(few)
    shuffled = [" ".join(reversed(WORDS[:1000]))]
    assert part(calibration, shuffled, allowed=False) == Parted(shuffled)
    short = [text(0, 31)]
    assert part(calibration, short, allowed=False) == Parted(short)


def test_scripts_without_spaces_are_compared_letter_by_letter() -> None:
    letters = "".join(chr(0x4E00 + 37 * number % 3000) for number in range(1_200))
    with pytest.raises(TextOverlap, match="stand in passages"):
        part([letters[:500], letters[500:]], [letters], allowed=False)


def test_rules_drawn_in_tables_are_no_passages() -> None:
    rule = " ".join(["-" * 3] * 200)
    tables = [f"{text(*span)}\n{rule}" for span in ((0, 500), (1000, 1500))]
    assert part(tables[:1], tables[1:], allowed=False) == Parted(tables[1:])


def test_passages_that_lie_across_parts_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "PART", 10)
    with pytest.raises(TextOverlap, match=r"^100\.0% of the evaluation text's words"):
        part([text(0, 100), text(100, 205)], [text(3, 203)], allowed=False)


@pytest.mark.parametrize("allowed", [True, False])
def test_nothing_shared_is_nothing_to_say(allowed: bool) -> None:
    parted = part(["a"], ["b"], allowed=allowed)
    assert parted == Parted(["b"])
    assert parted.warning() is None
