"""Settings that say by index what a layer is, and what they become once layers are removed. Imports no torch.

Such a setting is read again when the shorter model is loaded, where layers have other indices. Each kind of rule
below says the same of the same layers in its new words, or raises `Inexpressible` where it has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol

Settings = Mapping[str, object]
Changes = dict[str, object]
"""Settings to their new values; None: the setting is taken out."""
Fits = Callable[[int, int], bool]
"""Whether the layer of the first index may have the second, in one of the ways in which a rule can be said."""


class Inexpressible(Exception):
    """No values of the settings say of the remaining layers what was said of them before; the message says what."""


class Rule(Protocol):
    """One kind of rule; `names` are the settings that it reads and may change."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        """The settings to change where of `count` layers those at the indices `kept` remain.

        Raises:
            Inexpressible: there are no such settings.
        """
        ...

    def ways(self, settings: Settings, length: int, count: int) -> Iterator[Fits]:
        """The ways to say the rule of `length` layers that stay of `count`; they fit it if they fit one of them."""
        ...


class SaysAll:
    """What the rules have in common that have words for any layers."""

    def ways(self, settings: Settings, length: int, count: int) -> Iterator[Fits]:
        yield lambda old, new: True


@dataclass(frozen=True)
class OneSetting(SaysAll):
    """What the rules have in common that read and change the setting `name` alone."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True)
class PerLayer(OneSetting):
    """A list with one entry for each layer. Anything that is no list speaks of all layers alike."""

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        entries = settings.get(self.name)
        return {self.name: [entries[old] for old in kept]} if isinstance(entries, list | tuple) else {}


@dataclass(frozen=True)
class Kept(OneSetting):
    """A number from which a list is filled in, and which means something besides where there is the list; it stays."""

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        return {}


@dataclass(frozen=True)
class Threshold(OneSetting):
    """The index of the first layer that is unlike those before it."""

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        first = settings.get(self.name)
        return {self.name: sum(old < first for old in kept)} if isinstance(first, int) else {}


@dataclass(frozen=True)
class Indices(OneSetting):
    """A list of the indices of some layers, the first being `first`; `needed` says why one must stay, if it must."""

    needed: str | None = None
    first: int = 0

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        chosen = settings.get(self.name)
        if not isinstance(chosen, list | tuple):
            return {}
        found = _new_indices([index - self.first for index in chosen], kept)
        if self.needed and not found:
            raise Inexpressible(f"no layer that {self.name} lists would stay, and {self.needed}")
        return {self.name: [index + self.first for index in found]}

    def ways(self, settings: Settings, length: int, count: int) -> Iterator[Fits]:
        chosen = settings.get(self.name)
        if not self.needed or not isinstance(chosen, list | tuple):
            return super().ways(settings, length, count)
        return _one_of([index - self.first for index in chosen], length)


@dataclass(frozen=True)
class AtLeastOne(OneSetting):
    """A list with one entry for each layer, or one that is repeated until every layer has one, must keep an `entry`."""

    entry: str
    why: str

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        entries = settings.get(self.name)
        if isinstance(entries, list | tuple) and not any(entries[old % len(entries)] == self.entry for old in kept):
            raise Inexpressible(f"no layer of the kind {self.entry!r} ({self.name}) would stay, and {self.why}")
        return {}

    def ways(self, settings: Settings, length: int, count: int) -> Iterator[Fits]:
        entries = settings.get(self.name)
        if not isinstance(entries, list | tuple):
            return super().ways(settings, length, count)
        return _one_of([old for old in range(count) if entries[old % len(entries)] == self.entry], length)


@dataclass(frozen=True)
class Cycle(OneSetting):
    """A list that is repeated until every layer has an entry."""

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        entries = settings.get(self.name)
        if entries is None:
            return {}
        assert isinstance(entries, list | tuple)
        return {self.name: [entries[old % len(entries)] for old in kept]}


@dataclass(frozen=True)
class Runs(OneSetting):
    """Entries for each layer, as a list of [entries, how often they come]."""

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        runs = settings[self.name]
        assert isinstance(runs, list | tuple)
        if sum(times * len(run) for run, times in runs) != count:  # before as many are made
            raise ValueError(f"{self.name} has no {count} entries")
        entries = list(chain.from_iterable(list(run) * times for run, times in runs))
        return {self.name: [[[entries[old] for old in kept], 1]]}


@dataclass(frozen=True)
class Step(SaysAll):
    """Every `step`-th layer has experts, unless it is in the list `dense`; so all others can be listed there."""

    step: str
    dense: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.step, self.dense)

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        step, dense = settings.get(self.step) or 1, settings.get(self.dense) or []
        assert isinstance(step, int)
        assert isinstance(dense, list)
        without = [layer for layer in range(count) if (layer + 1) % step or layer in dense]
        return {self.step: 1, self.dense: _new_indices(without, kept)}


@dataclass(frozen=True)
class Period:
    """The layers at `offset`, `offset + period`, and so on have `what`; both numbers are settings.

    `needed` says why one of them must stay, if it must.
    """

    period: str
    offset: str
    what: str
    needed: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.period, self.offset)

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        period, offset = settings[self.period], settings[self.offset]
        assert isinstance(period, int)
        assert isinstance(offset, int)
        wanted = _new_indices(range(offset, count, period), kept)
        if self.needed and not wanted:
            raise Inexpressible(f"no layer with {self.what} would stay, and {self.needed}")
        for found in sorted({period, *range(1, len(kept) + 2)}, key=lambda one: one != period):
            for start in range(found):
                if list(range(start, len(kept), found)) == wanted:
                    return {self.period: found, self.offset: start}
        raise Inexpressible(
            f"every layer with {self.what} is said by {self.period} and {self.offset}, and of the layers that would "
            f"stay those with {self.what} are {wanted or 'none'} of 0 to {len(kept) - 1}, which no two numbers say"
        )

    def ways(self, settings: Settings, length: int, count: int) -> Iterator[Fits]:
        period, offset = settings[self.period], settings[self.offset]
        assert isinstance(period, int)
        assert isinstance(offset, int)
        said = {tuple(range(start, length, found)) for found in range(1, length + 2) for start in range(found)}
        return _exactly(range(offset, count, period), (new for new in said if new or not self.needed))


@dataclass(frozen=True)
class Interval:
    """Every `interval`-th of the layers from `start` to `end`, both included, is `what`; all three are settings."""

    start: str
    end: str
    interval: str
    what: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.start, self.end, self.interval)

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        wanted = _new_indices(self._chosen(settings, count), kept)
        if not wanted:
            return {self.start: len(kept), self.end: len(kept), self.interval: settings[self.interval]}
        for found in range(1, len(kept) + 1):
            if [layer for layer in range(wanted[0], wanted[-1] + 1) if (layer + 1) % found == 0] == wanted:
                return {self.start: wanted[0], self.end: wanted[-1], self.interval: found}
        raise Inexpressible(
            f"the layers with {self.what} are said by {', '.join(self.names)}, and of the layers that would stay they "
            f"are {wanted} of 0 to {len(kept) - 1}, which no three numbers say"
        )

    def ways(self, settings: Settings, length: int, count: int) -> Iterator[Fits]:
        every = [range(interval - 1, length, interval) for interval in range(1, length + 1)]
        said = {tuple(one[a:b]) for one in every for b in range(len(one) + 1) for a in range(b + 1)}
        return _exactly(self._chosen(settings, count), said)

    def _chosen(self, settings: Settings, count: int) -> list[int]:
        start, end, interval = (settings[name] for name in self.names)
        assert isinstance(start, int)
        assert isinstance(end, int)
        assert isinstance(interval, int)
        last = count - 1 if end == -1 else end
        return [layer for layer in range(count) if start <= layer <= last and (layer + 1) % interval == 0]


@dataclass(frozen=True)
class Every(OneSetting):
    """A number n: the layers n, 2n and so on, counted from 1, have the entry `what` in the list `of`, and no others.

    The list alone counts in transformers, which reads the number where there is no list; other programs may know
    nothing else. So the number says what the list says, or is taken out where none does. A word of L and G, repeated,
    may stand for it, with G for `what`. Where `what` is None, `of` holds the indices of those layers. `among`, a list
    and an entry, are the only layers that count where it is given.
    """

    of: str
    what: object = None
    among: tuple[str, str] | None = None

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        said, listed = settings.get(self.name), settings.get(self.of)
        if not (said and isinstance(said, int | str) and isinstance(listed, list | tuple)):
            return {}
        wanted = [
            old in listed if self.what is None else listed[old] == self.what
            for old in kept
            if self._counts(settings, old)
        ]
        if isinstance(said, str):
            same = all((said[new % len(said)] == "G") == one for new, one in enumerate(wanted))
            return {self.name: said if same else "".join("LG"[one] for one in wanted)}
        says = (
            number
            for number in (said, *range(1, len(wanted) + 2))
            if all(((new + 1) % number == 0) == one for new, one in enumerate(wanted))
        )
        return {self.name: next(says, None)}

    def _counts(self, settings: Settings, layer: int) -> bool:
        if self.among is None:
            return True
        entries = settings.get(self.among[0])
        return not isinstance(entries, list | tuple) or entries[layer] == self.among[1]


@dataclass(frozen=True)
class Within(OneSetting):
    """Settings that stand together in one, each with a rule that has words for any layers."""

    rules: tuple[Rule, ...]

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        part = settings.get(self.name)
        if not isinstance(part, dict):
            return {}
        changes = [rule.after(part, kept, count) for rule in self.rules]
        return {self.name: {**part, **dict(chain.from_iterable(change.items() for change in changes))}}


@dataclass(frozen=True)
class OverRootOfDepth(OneSetting):
    """A number that is divided by the square root of the number of layers."""

    def after(self, settings: Settings, kept: Sequence[int], count: int) -> Changes:
        value = settings[self.name]
        assert isinstance(value, int | float)
        return {self.name: value * math.sqrt(len(kept) / count)}


def _one_of(chosen: Collection[int], length: int) -> Iterator[Fits]:
    """One way for each index that one of the layers `chosen` may have."""

    def fits(place: int, old: int, new: int) -> bool:
        return new != place or old in chosen

    return (partial(fits, place) for place in range(length))


def _exactly(chosen: Collection[int], said: Iterable[Collection[int]]) -> Iterator[Fits]:
    """One way for each set of indices in `said`: the layers `chosen`, and no others, may have those."""

    def fits(places: Collection[int], old: int, new: int) -> bool:
        return (old in chosen) == (new in places)

    return (partial(fits, places) for places in said)


def _new_indices(chosen: Collection[int], kept: Sequence[int]) -> list[int]:
    """The indices that those layers of `chosen` have that are kept."""
    return [new for new, old in enumerate(kept) if old in chosen]
