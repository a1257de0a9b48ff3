"""Random tiny configs of every supported family: depth, patterns by layer, windows, heads, embeddings tied or not.

What is drawn for a family follows from its row in the table, so a new row needs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from elder_core.architectures.rules import (
    AtLeastOne,
    Cycle,
    Every,
    Indices,
    Interval,
    Kept,
    OverRootOfDepth,
    Period,
    Rule,
    Runs,
    Step,
)
from tests.unit.elder_core.acceptance import named

FEWEST_LAYERS, MOST_LAYERS = 3, 8
WINDOWS = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size")
COMPUTED = {"attention_layers"}  # from another setting, which is drawn

Draw = Callable[[st.SearchStrategy[Any]], Any]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Removal:
    """A model to build, by the settings of its text model and the seed of its weights, and the layers that go."""

    settings: Settings
    removed: tuple[int, ...]
    seed: int


@st.composite
def removals(draw: Draw, family: str) -> Removal:
    """A random config of `family`, see `named`, and a random set of its layers, from one of them to all but one."""
    row, tiny = named(family).row, named(family).config().get_text_config().to_dict()
    layers = draw(st.integers(FEWEST_LAYERS, MOST_LAYERS))
    settings = {row.count: layers, "num_hidden_layers": layers, **_of_the_whole(draw, tiny)}
    for name in set(row.per_layer) - COMPUTED:
        if isinstance(tiny.get(name), list):
            settings[name] = _entries(draw, tiny[name], layers)
    for name in row.thresholds:
        settings[name] = draw(st.integers(0, layers))
    for rule in sorted(row.rules, key=lambda rule: isinstance(rule, AtLeastOne)):  # the last: it mends what is drawn
        settings |= DRAWN[type(rule)](draw, rule, {**tiny, **settings}, layers)
    removed = draw(st.sets(st.integers(0, layers - 1), min_size=1, max_size=layers - 1))
    return Removal(settings, tuple(sorted(removed)), draw(st.integers(0, 1000)))


def _of_the_whole(draw: Draw, tiny: Settings) -> Settings:
    found: Settings = {"tie_word_embeddings": draw(st.booleans())}
    found |= {name: draw(st.integers(4, 32)) for name in WINDOWS if isinstance(tiny.get(name), int)}
    if tiny.get("num_key_value_heads") == 2 and "num_attention_heads_per_layer" not in tiny:
        found["num_key_value_heads"] = draw(st.sampled_from((1, 2)))  # MiMo doubles it
    return found


def _entries(draw: Draw, kinds: Sequence[Any], length: int) -> list[Any]:
    return draw(st.lists(st.sampled_from(sorted({*kinds})), min_size=length, max_size=length))


def _indices(draw: Draw, rule: Indices, settings: Settings, layers: int) -> Settings:
    if not isinstance(settings[rule.name], list):
        return {}
    return {rule.name: sorted(draw(st.sets(st.integers(0, layers - 1), min_size=1)))}


def _at_least_one(draw: Draw, rule: AtLeastOne, settings: Settings, layers: int) -> Settings:
    entries = list(settings[rule.name])
    if rule.entry not in entries:
        entries[draw(st.integers(0, len(entries) - 1))] = rule.entry
    return {rule.name: entries}


def _cycle(draw: Draw, rule: Cycle, settings: Settings, layers: int) -> Settings:
    return {rule.name: _entries(draw, settings[rule.name], draw(st.integers(1, layers)))}


def _runs(draw: Draw, rule: Runs, settings: Settings, layers: int) -> Settings:
    kinds = settings[rule.name][0][0]
    first = draw(st.integers(1, layers - 1))
    return {rule.name: [[_entries(draw, kinds, 1), first], [_entries(draw, kinds, layers - first), 1]]}


def _step(draw: Draw, rule: Step, settings: Settings, layers: int) -> Settings:
    return {rule.step: draw(st.integers(1, 3)), rule.dense: sorted(draw(st.sets(st.integers(0, layers - 1))))}


def _period(draw: Draw, rule: Period, settings: Settings, layers: int) -> Settings:
    period = draw(st.integers(1, layers))
    return {rule.period: period, rule.offset: draw(st.integers(0, period - 1))}


def _interval(draw: Draw, rule: Interval, settings: Settings, layers: int) -> Settings:
    start = draw(st.integers(0, layers - 1))
    end = draw(st.sampled_from((-1, *range(start, layers))))  # -1: up to the last
    return {rule.start: start, rule.end: end, rule.interval: draw(st.integers(1, 3))}


DRAWN: dict[type[Rule], Callable[..., Settings]] = {
    Indices: _indices,
    AtLeastOne: _at_least_one,
    Cycle: _cycle,
    Runs: _runs,
    Step: _step,
    Period: _period,
    Interval: _interval,
    Kept: lambda draw, rule, *_: {rule.name: draw(st.integers(1, 2))},
    Every: lambda *_: {},  # the list beside it is drawn, and goes before it
    OverRootOfDepth: lambda draw, rule, *_: {rule.name: draw(st.floats(0.5, 2))},
}
