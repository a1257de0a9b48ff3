"""The nearest set of layers that a config can say, against all sets there are."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elder_core.architectures import table
from elder_core.architectures.architecture import Architecture
from elder_core.architectures.nearest import nearest
from elder_core.architectures.rules import AtLeastOne, Indices, Interval, Period, Rule, Runs, Step
from elder_core.errors import UnsupportedArchitecture
from tests.unit.elder_core.families import LAYERS, tiny_config

COUNT = 7
RULES: tuple[Rule, ...] = (
    Period("period", "offset", "gold", "it must"),
    Period("other_period", "other_offset", "silver"),
    Interval("start", "end", "interval", "copper"),
    AtLeastOne("kinds", "x", "it must"),
    Indices("some", "it must"),
    Step("step", "dense"),
)


@st.composite
def settings(draw: Any) -> dict[str, object]:
    start = draw(st.integers(0, COUNT - 1))
    period, other = draw(st.integers(1, COUNT)), draw(st.integers(1, COUNT))
    return {
        "num_hidden_layers": COUNT,
        "period": period,
        "offset": draw(st.integers(0, period - 1)),
        "other_period": other,
        "other_offset": draw(st.integers(0, other - 1)),
        "start": start,
        "end": draw(st.integers(start, COUNT - 1)),
        "interval": draw(st.integers(1, 3)),
        "kinds": draw(st.lists(st.sampled_from("xyz"), min_size=2, max_size=COUNT)),
        "some": sorted(draw(st.sets(st.integers(0, COUNT - 1)))),
        "step": 2,
        "dense": [],
    }


def can_be_said(row: Architecture, given: dict[str, object], removed: tuple[int, ...]) -> bool:
    count = row.layers(given)
    assert isinstance(count, int)
    try:
        table.changes(row, given, [layer for layer in range(count) if layer not in removed])
    except UnsupportedArchitecture:
        return False
    return True


@given(
    st.sets(st.sampled_from(RULES), max_size=3),
    settings(),
    st.sets(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT - 1),
    st.none() | st.permutations(range(COUNT)),
)
def test_it_is_the_nearest_of_all_sets_that_can_be_said(
    rules: set[Rule], given: dict[str, object], removed: set[int], weights: list[int] | None
) -> None:
    row = replace(table.find("llama"), rules=tuple(rules))

    def worth(layers: tuple[int, ...]) -> tuple[int, int]:
        return len(removed & {*layers}), -sum(weights[layer] for layer in layers) if weights else 0

    said = [layers for layers in combinations(range(COUNT), len(removed)) if can_be_said(row, given, layers)]
    found = nearest(row, given, removed, weights)
    if not said:
        assert found is None
    else:
        assert found in said
        assert worth(found) == max(map(worth, said))
        assert found == tuple(sorted(removed)) or tuple(sorted(removed)) not in said


@pytest.mark.parametrize("family", sorted(table.ARCHITECTURES))
def test_as_many_layers_as_one_likes_can_be_removed_from_every_family(family: str) -> None:
    """But for OLMo Hybrid, which cannot do without either kind of its layers."""
    row, given = table.find(family), tiny_config(family).to_dict()
    for count in range(1, LAYERS):
        for removed in combinations(range(LAYERS), count):
            found = nearest(row, given, removed, None)
            if found is None:
                assert (family, count) == ("olmo_hybrid", LAYERS - 1)
            else:
                assert can_be_said(row, given, found)


def test_rules_that_say_all_ask_for_nothing() -> None:
    row = replace(table.find("gpt_neo"), rules=(Runs("attention_types"),))
    assert nearest(row, {"num_layers": 4, "attention_types": [[["global"], 4]]}, (1, 2), None) == (1, 2)
