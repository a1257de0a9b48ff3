"""`key=value` arguments of the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer

SECTIONS = ("method", "calibration", "evaluation", "output")


def parse_layers(text: str) -> list[int]:
    """`3,7` as [3, 7]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of layer numbers such as 3,7.") from None


def parse_metadata(pairs: Sequence[str]) -> dict[str, str]:
    """`["team=search"]` as {"team": "search"}."""
    return dict(_split(pair) for pair in pairs)


def parse_settings(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Group settings by the part of the job that they belong to.

    `gate_steps=20` is a parameter of the method, as is `method.gate_steps=20`; `calibration.samples=64` a field of that
    section. Values are JSON where they can be read as such (`true`, `0.5`, `null`, `["a"]`), text otherwise.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        key, value = _split(pair)
        section, dot, name = key.partition(".")
        if dot and section not in SECTIONS:
            raise typer.BadParameter(f"{key!r}: before the dot goes {', '.join(SECTIONS[:-1])} or {SECTIONS[-1]}.")
        grouped.setdefault(section if dot else "method", {})[name if dot else key] = _value(value)
    return grouped


def _split(pair: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals or not key:
        raise typer.BadParameter(f"{pair!r} is not of the form key=value.")
    return key, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
