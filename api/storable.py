"""Text that every database and every answer can hold.

JSON can spell half of a surrogate pair, which UTF-8 cannot, and NUL, which PostgreSQL does not store. Once in a row,
either would spoil each answer that has the row in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

MOST_ERRORS = 20

_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_ERROR = PydanticCustomError("text_not_storable", "Text must not hold NUL, nor half of a surrogate pair")

Loc = tuple[str | int, ...]


def check_storable(value: Any) -> Any:
    """`value` as it is, for a validator that runs before others.

    Raises:
        ValidationError: a string in it, at any depth, or a name of a field cannot be stored; each is located.
    """
    errors: list[InitErrorDetails] = [
        InitErrorDetails(type=_ERROR, loc=loc, input=text) for loc, text in _strings(value) if _UNSTORABLE.search(text)
    ]
    if errors:
        raise ValidationError.from_exception_data("body", errors[:MOST_ERRORS])
    return value


def _strings(value: Any) -> Iterator[tuple[Loc, str]]:
    """Every string in `value` and where it is. Not recursive: JSON may be nested deeper than calls can be."""
    waiting: list[tuple[Loc, Any]] = [((), value)]
    while waiting:
        loc, found = waiting.pop()
        if isinstance(found, str):
            yield loc, found
        elif isinstance(found, dict):
            names = [(*loc, readable(name)) for name in found]
            yield from zip(names, found, strict=True)
            waiting += reversed(list(zip(names, found.values(), strict=True)))
        elif isinstance(found, list):
            waiting += reversed([((*loc, index), item) for index, item in enumerate(found)])


def readable(value: Any) -> Any:
    """JSON in which what cannot be answered is replaced: for rows that came past `check_storable`."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {readable(key): readable(item) for key, item in value.items()}
    return [readable(item) for item in value] if isinstance(value, list) else value


def refuse_nul(request: Request) -> None:
    """For every route: no name or value in path and query may hold NUL; surrogates cannot come that way."""
    for place, pairs in (("path", request.path_params.items()), ("query", request.query_params.multi_items())):
        for name, value in pairs:
            if "\x00" in name or "\x00" in str(value):
                error = {"type": _ERROR.type, "loc": (place, readable(name)), "msg": _ERROR.message(), "input": value}
                raise RequestValidationError([error])
