"""Rules by index, each before and after a removal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elder_core.architectures.rules import (
    AtLeastOne,
    Cycle,
    Every,
    Indices,
    Inexpressible,
    Interval,
    OverRootOfDepth,
    Period,
    PerLayer,
    Rule,
    Runs,
    Step,
    Threshold,
    Within,
)

KEPT = (1, 2, 4, 5)  # of 6


@pytest.mark.parametrize(
    ("rule", "settings", "expected"),
    [
        (PerLayer("a"), {"a": list("uvwxyz")}, {"a": list("vwyz")}),
        (PerLayer("a"), {"a": 3}, {}),
        (PerLayer("a"), {}, {}),
        (Threshold("a"), {"a": 3}, {"a": 2}),
        (Threshold("a"), {"a": None}, {}),
        (Indices("a"), {"a": [0, 2, 5]}, {"a": [1, 3]}),
        (Indices("a", first=1), {"a": [1, 3, 6]}, {"a": [2, 4]}),
        (
            Within("a", (Indices("b", first=1), Threshold("c"))),
            {"a": {"b": [2, 3], "c": 3, "d": 7}},
            {"a": {"b": [1, 2], "c": 2, "d": 7}},
        ),
        (Within("a", (Threshold("c"),)), {"a": None, "c": 3}, {}),
        (Cycle("a"), {"a": ["x", "y", "z"]}, {"a": ["y", "z", "y", "z"]}),
        (Runs("a"), {"a": [[["x", "y"], 2], [["z"], 2]]}, {"a": [[["y", "x", "z", "z"], 1]]}),
        (Step("a", "b"), {"a": 2, "b": [3]}, {"a": 1, "b": [1, 2]}),
        (Step("a", "b"), {"b": None}, {"a": 1, "b": []}),
        (OverRootOfDepth("a"), {"a": 3.0}, {"a": pytest.approx(3 * (4 / 6) ** 0.5)}),
        (AtLeastOne("a", "x", "so"), {"a": ["x", "y"]}, {}),
        (Cycle("a"), {}, {}),
        (Every("a", "b", "x"), {"a": 3, "b": list("xyxyyx")}, {"a": 2}),
        (Every("a", "b", "x"), {"a": 3, "b": list("yxyxyy")}, {"a": None}),
        (Every("a", "b", "x"), {"a": 2, "b": list("xyyxyy")}, {"a": 5}),
        (Every("a", "b", "x"), {"a": 7, "b": list("xyyxyy")}, {"a": 7}),
        (Every("a", "b", "x"), {"a": 3}, {}),
        (Every("a", "b", "x"), {"a": 0, "b": list("yyyyyx")}, {}),
        (Every("a", "b", "x"), {"b": list("yyyyyx")}, {}),
        (Every("a", "b"), {"a": 3, "b": [2, 5]}, {"a": 2}),
        (Every("a", "b", "x"), {"a": "LLG", "b": list("yyxyyx")}, {"a": "LGLG"}),
        (Every("a", "b", "x"), {"a": "LG", "b": list("yyxxyx")}, {"a": "LG"}),
        (Every("a", "b", "x", ("c", "z")), {"a": 9, "b": list("xxyyyy"), "c": list("wwzzzz")}, {"a": 9}),
        (Every("a", "b", "x", ("c", "w")), {"a": 3, "b": list("xyxyyx"), "c": list("wwwzzz")}, {"a": 2}),
    ],
)
def test_what_is_said_of_the_layers_that_stay(
    rule: Rule, settings: dict[str, object], expected: dict[str, object]
) -> None:
    assert rule.after(settings, KEPT, 6) == expected


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (AtLeastOne("a", "x", "it must"), {"a": ["x", "y", "y", "x", "y", "y"]}),
        (Indices("a", "it must"), {"a": [0, 3]}),
        (Period("a", "b", "gold", "it must"), {"a": 3, "b": 0}),
    ],
)
def test_the_last_layer_of_a_kind_that_is_needed_must_stay(rule: Rule, settings: dict[str, object]) -> None:
    with pytest.raises(Inexpressible, match="would stay, and it must"):
        rule.after(settings, KEPT, 6)


kept_of_12 = st.sets(st.integers(0, 11), min_size=1).map(sorted)


@given(kept_of_12, st.integers(1, 12), st.data())
def test_a_period_says_the_same_of_the_same_layers_or_nothing(
    kept: list[int], period: int, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, period - 1))
    wanted = [old % period == offset for old in kept]
    rule = Period("a", "b", "gold")
    try:
        found = rule.after({"a": period, "b": offset}, kept, 12)
    except Inexpressible:
        choices = [(a, b) for a in range(1, 14) for b in range(a)]
        assert all([new % a == b for new in range(len(kept))] != wanted for a, b in choices)
    else:
        assert [new % found["a"] == found["b"] for new in range(len(kept))] == wanted  # type: ignore[operator]


@given(kept_of_12, st.integers(1, 4), st.integers(0, 11), st.integers(-1, 11))
def test_an_interval_says_the_same_of_the_same_layers_or_nothing(
    kept: list[int], interval: int, start: int, end: int
) -> None:
    def chosen(layers: list[int], start: int, end: int, interval: int) -> list[bool]:
        return [start <= layer <= end and (layer + 1) % interval == 0 for layer in layers]

    wanted = chosen(kept, start, 11 if end == -1 else end, interval)
    new = list(range(len(kept)))
    try:
        found = Interval("a", "b", "c", "gold").after({"a": start, "b": end, "c": interval}, kept, 12)
    except Inexpressible:
        assert all(chosen(new, a, b, c) != wanted for a in new for b in new for c in range(1, 13))
    else:
        assert chosen(new, *(found[name] for name in "abc")) == wanted  # type: ignore[arg-type]


def test_what_no_numbers_say_is_named() -> None:
    with pytest.raises(Inexpressible, match=r"gold is said by a and b, .* are \[0, 1, 3\] of 0 to 3"):
        Period("a", "b", "gold").after({"a": 2, "b": 1}, (1, 3, 4, 5), 6)
