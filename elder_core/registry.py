"""The methods by name, found without importing torch."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from elder_core.errors import UnknownMethod
from elder_core.parameters import (
    PAPER,
    CutParameters,
    ElderParameters,
    EvoPressParameters,
    LastParameters,
    PruneCompParameters,
    RandomParameters,
    ReplaceMeParameters,
    ShortenedLlamaParameters,
    ShortGptParameters,
    SlebParameters,
    Strict,
    UidlParameters,
)

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


CODE = "elder_core.methods"
ARXIV = "https://arxiv.org/abs"

METHODS: dict[str, MethodEntry] = {
    entry.name: entry
    for entry in (
        MethodEntry("elder", "ELDeR", ElderParameters, f"{CODE}.elder.method:Elder", PAPER),
        MethodEntry("shortgpt", "ShortGPT", ShortGptParameters, f"{CODE}.shortgpt:ShortGpt", f"{ARXIV}/2403.03853"),
        MethodEntry("uidl", "UIDL", UidlParameters, f"{CODE}.uidl:Uidl", f"{ARXIV}/2403.17887"),
        MethodEntry("sleb", "SLEB", SlebParameters, f"{CODE}.sleb:Sleb", f"{ARXIV}/2402.09025"),
        MethodEntry(
            "shortened_llama",
            "Shortened LLaMA",
            ShortenedLlamaParameters,
            f"{CODE}.shortened_llama:ShortenedLlama",
            f"{ARXIV}/2402.02834",
        ),
        MethodEntry("evopress", "EvoPress", EvoPressParameters, f"{CODE}.evopress:EvoPress", f"{ARXIV}/2410.14649"),
        MethodEntry(
            "replaceme", "ReplaceMe", ReplaceMeParameters, f"{CODE}.replaceme:ReplaceMe", f"{ARXIV}/2505.02819"
        ),
        MethodEntry(
            "prune_comp", "Prune&Comp", PruneCompParameters, f"{CODE}.prune_comp:PruneComp", f"{ARXIV}/2507.18212"
        ),
        MethodEntry("cut", "Cut", CutParameters, f"{CODE}.cut:Cut", f"{ARXIV}/2403.13257"),
        MethodEntry("random", "Random", RandomParameters, f"{CODE}.random:Random", f"{ARXIV}/2411.15558"),
        MethodEntry("last", "Last layers", LastParameters, f"{CODE}.last:Last", f"{ARXIV}/2411.15558"),
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
