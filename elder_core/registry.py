"""The methods by name, found without importing torch."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from elder_core.errors import UnknownMethod
from elder_core.parameters import PAPER, ElderParameters, ShortGptParameters, SlebParameters, Strict

if TYPE_CHECKING:
    from elder_core.methods.base import Method


@dataclass(frozen=True)
class MethodEntry:
    """One method: its parameters, where its code is (`module:Class`), and where it was published."""

    name: str
    title: str
    parameters: type[Strict]
    target: str
    source: str

    @property
    def summary(self) -> str:
        return (self.parameters.__doc__ or "").strip().splitlines()[0]

    def load(self) -> type[Method]:
        module, _, name = self.target.partition(":")
        return cast("type[Method]", getattr(importlib.import_module(module), name))


METHODS: dict[str, MethodEntry] = {
    entry.name: entry
    for entry in (
        MethodEntry("elder", "ELDeR", ElderParameters, "elder_core.methods.elder.method:Elder", PAPER),
        MethodEntry(
            "shortgpt",
            "ShortGPT",
            ShortGptParameters,
            "elder_core.methods.shortgpt:ShortGpt",
            "https://arxiv.org/abs/2403.03853",
        ),
        MethodEntry("sleb", "SLEB", SlebParameters, "elder_core.methods.sleb:Sleb", "https://arxiv.org/abs/2402.09025"),
    )
}


def find_method(name: str) -> MethodEntry:
    """The method called `name`.

    Raises:
        UnknownMethod: there is none; the message names the nearest.
    """
    try:
        return METHODS[name]
    except KeyError:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.3)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise UnknownMethod(
            f"There is no method {name!r}. {hint}Known methods: {', '.join(METHODS)}.", loc=("method", "name")
        ) from None
