"""docs/errors.md lists every error code there is, with its HTTP status, and none that there is not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from api import errors as api_errors
from elder_client.errors import ElderClientError
from elder_core.errors import ElderError

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| `(?P<code>\w+)` \| (?P<where>[^|]+) \| (?P<meaning>[^|]+) \| (?P<remedy>[^|]+) \|$", re.MULTILINE
)
HTTP = {code: status for status, code in api_errors.HTTP_CODES.items()} | {"invalid_json": 400, "invalid_request": 422}


def classes(base: type) -> list[type]:
    return [base, *(found for child in base.__subclasses__() for found in classes(child))]


def codes(base: type) -> dict[str, type]:
    # errors that tests make up are not the product's
    return {
        kind.code: kind for kind in classes(base) if "code" in vars(kind) and not kind.__module__.startswith("test")
    }


def handler_codes() -> set[str]:
    """Codes that api/errors.py gives to `problem(…)` in so many words."""
    tree = ast.parse((ROOT / "api" / "errors.py").read_text("utf-8"))
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "problem"
    ]
    return {part.value for call in calls for part in call.args[2:3] if isinstance(part, ast.Constant)}


def documented() -> dict[str, re.Match[str]]:
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    return {row["code"]: row for row in ROW.finditer(text)}


def test_every_code_is_listed_and_no_other() -> None:
    other = {*HTTP, *handler_codes(), "http_error"}
    assert set(documented()) == {*codes(ElderError), *codes(ElderClientError), *other}


def test_no_code_is_listed_twice() -> None:
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert len(documented()) == len(ROW.findall(text)) == sum(line.startswith("| `") for line in text.splitlines())


@pytest.mark.parametrize(("code", "kind"), sorted(codes(ElderError).items()))
def test_the_status_is_the_one_that_is_sent(code: str, kind: type[ElderError]) -> None:
    status = api_errors.http_status(kind)
    allowed = {str(int(status))} | ({"job", "start"} if status == 500 else set())
    assert documented()[code]["where"].strip() in allowed


@pytest.mark.parametrize(("code", "status"), sorted(HTTP.items()))
def test_the_status_of_http_errors_is_right(code: str, status: int) -> None:
    assert documented()[code]["where"].strip() == str(status)
