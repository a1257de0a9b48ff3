"""A field of the form for each field of a pydantic model: label, help, limits and default come from its declaration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

EMPTY = {"n": "empty", "N": "Empty"}  # what a form has for null
LABELS = {
    ("model", "id"): "Model",
    ("ratio",): "Ratio",
    ("layers_to_remove",): "Number of layers",
    ("layers",): "Layers",
    ("target", "max_perplexity_increase"): "Share of perplexity",
    ("target", "max_bytes"): "Bytes on disk",
    ("target", "min_speedup"): "Times as fast",
    ("calibration", "source"): "Calibration text",
    ("evaluation", "source"): "Evaluation text",
    ("evaluation", "speed"): "Measure speed and memory",
    ("evaluation", "generation"): "Generate texts",
    ("output", "dtype"): "Number type",
    ("needs", "device"): "Device needed",
    ("needs", "memory_bytes"): "Memory needed",
}


class Control(StrEnum):
    TEXT = "text"
    INTEGER = "integer"
    DECIMAL = "decimal"
    CHOICE = "choice"
    SWITCH = "switch"
    NUMBERS = "numbers"  # whole numbers between commas or spaces
    LINES = "lines"
    PAIRS = "pairs"  # key=value, one a line


@dataclass(frozen=True)
class Field:
    """`loc` is where pydantic reports an error of this field. `default` is written as it would be typed."""

    loc: tuple[str, ...]
    label: str
    help: str
    limits: str
    control: Control
    choices: tuple[str, ...]
    default: str
    nullable: bool

    @property
    def name(self) -> str:
        return ".".join(self.loc)

    @property
    def id(self) -> str:
        return "field-" + "-".join(self.loc)

    @property
    def required(self) -> bool:
        return (
            not self.default and not self.nullable and self.control in (Control.TEXT, Control.INTEGER, Control.DECIMAL)
        )

    @property
    def path(self) -> tuple[str, ...]:
        """Where the value stands in the body of a request: pydantic puts the method's name into loc."""
        return self.loc if self.loc[0] != "method" else (self.loc[0], *self.loc[2:])

    def parse(self, typed: str | None) -> Any:
        """What was typed, for pydantic to check; None for an empty field."""
        if self.control is Control.SWITCH:
            return typed is not None
        text = (typed or "").strip()
        if not text:
            return None
        if self.control is Control.NUMBERS:
            return re.split(r"[,\s]+", text.strip(", "))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if self.control is Control.LINES:
            return lines
        if self.control is Control.PAIRS:
            pairs = (line.partition("=") for line in lines)
            return {key.strip(): value.strip() for key, _, value in pairs}
        return text


def fields_of(model: type[BaseModel], *prefix: str) -> tuple[Field, ...]:
    """Every field of `model` that holds a plain value; nested models are left out."""
    schema = model.model_json_schema()
    found = []
    for name, declared in schema["properties"].items():
        resolved = _resolve(declared, schema.get("$defs", {}))
        if (control := _control(resolved)) is not None:
            found.append(_field((*prefix, name), resolved, control))
    return tuple(found)


def _resolve(declared: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The declaration with references followed, and without the branch that says null."""
    branches = [branch for branch in declared.get("anyOf", ()) if branch.get("type") != "null"]
    merged = {**branches[0], **declared} if len(branches) == 1 else declared
    if "$ref" in merged:
        merged = {**definitions[merged["$ref"].rpartition("/")[2]], **merged}
    return merged


_OF_TYPE = {
    "string": Control.TEXT,
    "integer": Control.INTEGER,
    "number": Control.DECIMAL,
    "boolean": Control.SWITCH,
}


def _control(declared: dict[str, Any]) -> Control | None:
    kind = declared.get("type")
    if "const" in declared:
        return None
    if "enum" in declared:
        return Control.CHOICE
    if kind == "array":
        return Control.NUMBERS if declared["items"].get("type") == "integer" else Control.LINES
    if kind == "object" and "properties" not in declared:
        return Control.PAIRS
    return _OF_TYPE.get(kind or "")


def _field(loc: tuple[str, ...], declared: dict[str, Any], control: Control) -> Field:
    name = loc[-1]
    return Field(
        loc=loc,
        label=LABELS.get(loc, name.replace("_", " ").capitalize()),
        help=re.sub(r"\b([Nn])ull\b", lambda word: EMPTY[word[1]], declared.get("description", "")),
        limits=_limits(declared),
        control=control,
        choices=tuple(declared.get("enum", ())),
        default=_typed(declared.get("default")),
        nullable="anyOf" in declared,
    )


def _limits(declared: dict[str, Any]) -> str:
    """From 0 to 100; above 0, at most 10; at least 1."""
    low, high = declared.get("minimum"), declared.get("maximum")
    above, below = declared.get("exclusiveMinimum"), declared.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"From {low:,} to {high:,}."
    words = (("at least", low), ("above", above), ("at most", high), ("below", below))
    text = ", ".join(f"{word} {value:,}" for word, value in words if value is not None)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _typed(default: Any) -> str:
    if default is None or default == {}:
        return ""
    if isinstance(default, bool):
        return "on" if default else ""
    return str(default)
