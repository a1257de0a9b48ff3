"""Text from anywhere, such as a job's output, made fit for the database."""

from __future__ import annotations

_REPLACEMENT = "\ufffd"


def storable(text: str) -> str:
    """`text` without what PostgreSQL refuses to keep: NUL, and half of a surrogate pair."""
    return text.replace("\0", _REPLACEMENT).encode("utf-8", "replace").decode()
