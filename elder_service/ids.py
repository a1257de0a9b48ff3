"""Ids: a prefix that says what it is, then a ULID, so that ids sort by creation."""

from __future__ import annotations

from ulid import ULID


def new_id(prefix: str) -> str:
    return f"{prefix}_{str(ULID()).lower()}"
