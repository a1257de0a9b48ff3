"""docs/operations.md lists every setting with the default that the code has; .env.example and compose know no other."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from elder_service.settings import Settings

ROOT = Path(__file__).parents[2]
FIELDS = Settings.model_fields
ROW = re.compile(r"^\| `(ELDER_\w+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
# read by elder_core, by the client and by docker compose itself
NOT_SETTINGS = {"ELDER_CACHE", "ELDER_BUILTIN_ROOT", "ELDER_SERVER", "ELDER_MODELS", "ELDER_BIND"}


def table() -> dict[str, tuple[str, str]]:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    return {name: (default.strip(), help_text.strip()) for name, default, help_text in ROW.findall(text)}


def shown_default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value == () or isinstance(value, SecretStr):
        return "–"
    return f"`{value.value if isinstance(value, Enum) else value}`"


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_documented(name: str) -> None:
    row = (shown_default(FIELDS[name]), FIELDS[name].description)
    assert table().get(f"ELDER_{name.upper()}") == row, (
        f"the row should be | `ELDER_{name.upper()}` | {' | '.join(map(str, row))} |"
    )


def test_nothing_else_is_documented() -> None:
    assert set(table()) == {f"ELDER_{name.upper()}" for name in FIELDS} | NOT_SETTINGS


@pytest.mark.parametrize(
    "file", [".env.example", "docker-compose.yml", "Dockerfile", "README.md", "docs/operations.md"]
)
def test_no_file_names_a_setting_that_does_not_exist(file: str) -> None:
    named = set(re.findall(r"\bELDER_[A-Z][A-Z_]*[A-Z]\b", (ROOT / file).read_text("utf-8")))
    assert named <= {f"ELDER_{name.upper()}" for name in FIELDS} | NOT_SETTINGS
