"""What each scenario cost, kept for the table in docs/reliability.md.

make test-faults                 # writes build/faults.jsonl, and the table at its end
python -m tests.faults.records   # the table alone, of the last run
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

FILE = "ELDER_TEST_FAULT_RECORDS"
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
MARK = "<!-- made by tests/faults/records.py from here on -->"


def write(recovery_seconds: float) -> None:
    """Note it for the test that runs, if a run of `make test-faults` asks for that."""
    target = os.environ.get(FILE)
    if target:
        name = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0]
        with Path(target).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"test": name, "recovery_seconds": recovery_seconds}) + "\n")


def main() -> None:
    found = _longest((ROOT / "build" / "faults.jsonl").read_text("utf-8"))
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text.partition(MARK)[0] + MARK + "\n\n" + "\n".join(_rows(found)) + "\n", encoding="utf-8")


def _longest(lines: str) -> dict[tuple[str, str], float]:
    """By file and test, over all its parameters."""
    found: dict[tuple[str, str], float] = {}
    for line in map(json.loads, lines.splitlines()):
        file, _, test = line["test"].partition("::")
        key = (file, test.partition("[")[0])
        found[key] = max(found.get(key, 0.0), line["recovery_seconds"])
    return found


def _rows(found: dict[tuple[str, str], float]) -> Iterator[str]:
    yield "| fault | lost | longest recovery seen | command |"
    yield "|---|---|---|---|"
    for (file, test), seconds in sorted(found.items()):
        recovery = f"{seconds:.1f} s" if seconds else "no attempt was given up"
        yield f"| {_told(ROOT / file, test)} | nothing | {recovery} | `make test-faults ARGS='-k {test}'` |"


def _told(file: Path, test: str) -> str:
    """The test's name in words, and what its first line says beside."""
    words = re.sub(r"^test ", "", test.replace("_", " ")).capitalize()
    functions = [one for one in ast.parse(file.read_text("utf-8")).body if isinstance(one, ast.FunctionDef)]
    told = next((ast.get_docstring(one) for one in functions if one.name == test), None)
    return f"{words}. {' '.join(told.split())}" if told else f"{words}."


if __name__ == "__main__":
    main()
