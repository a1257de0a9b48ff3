"""The layers nearest to some chosen ones that a config has words to do without. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import product

from elder_core.architectures import table
from elder_core.architectures.architecture import Architecture
from elder_core.architectures.rules import Fits, Settings
from elder_core.errors import UnsupportedArchitecture

Layers = tuple[int, ...]
Worth = tuple[int, float]
"""How many of the layers kept were not to go, and the sum of the weights of all kept."""


def nearest(
    row: Architecture, settings: Settings, removed: Collection[int], weights: Sequence[float] | None
) -> Layers | None:
    """As many layers as `removed`, ascending, so that the config, given as `field → value`, has words for the rest.

    Of all such sets it is the one with most layers in common with `removed`, and among equals the one of the smallest
    sum of `weights` (small meaning removable), so `removed` itself where it can be said. None: there is no such set.
    """
    count = row.layers(settings)
    assert isinstance(count, int)
    with suppress(UnsupportedArchitecture):
        table.changes(row, settings, [layer for layer in range(count) if layer not in removed])
        return tuple(sorted(removed))
    worth = [(int(layer not in removed), weights[layer] if weights else 0.0) for layer in range(count)]
    ways = [
        [way for way in rule.ways(settings, count - len(removed), count) if _best(worth, len(removed), (way,))]
        for rule in row.rules
    ]
    found = [best for chosen in product(*ways) if (best := _best(worth, len(removed), chosen))]
    if not found:
        return None
    _, kept = max(found, key=lambda best: best[0])
    return tuple(layer for layer in range(count) if layer not in kept)


def _best(worth: Sequence[Worth], removed: int, ways: Sequence[Fits]) -> tuple[Worth, Layers] | None:
    """The layers to keep, all but `removed` of them, of most worth that fit each of `ways`; None if none do."""
    best: dict[int, tuple[Worth, Layers]] = {0: ((0, 0.0), ())}  # how many are removed so far → what is kept then
    for layer, (number, weight) in enumerate(worth):
        now: dict[int, tuple[Worth, Layers]] = {}
        for gone, (total, kept) in best.items():
            if all(fits(layer, len(kept)) for fits in ways):
                _offer(now, gone, ((total[0] + number, total[1] + weight), (*kept, layer)))
            if gone < removed:
                _offer(now, gone + 1, (total, kept))
        best = now
    return best.get(removed)


def _offer(best: dict[int, tuple[Worth, Layers]], gone: int, found: tuple[Worth, Layers]) -> None:
    if gone not in best or found[0] > best[gone][0]:
        best[gone] = found
