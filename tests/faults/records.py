"""What each scenario cost, kept for the table in docs/reliability.md.

make test-faults                 # writes build/faults.jsonl, and the table at its end
python -m tests.faults.records   # the table alone, of the last run

Only of tests that passed. A row of a test that did not run stays as it is; one of a test that is no more goes.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "ELDER_TEST_FAULT_RECORDS"
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
MARK = "<!-- made by tests/faults/records.py from here on -->"
ROW = re.compile(r"^\| .* \| (?P<lost>.*) \| (?P<recovery>.*) \| `make test-faults ARGS='-k (?P<test>\w+)'` \|$")


@dataclass
class Cost:
    """Of a test over all its parameters: jobs that were accepted, those of them that were lost, and the longest time
    from an attempt that was given up to the next; 0 where none was."""

    accepted: int = 0
    lost: int = 0
    recovery_seconds: float = 0.0

    def add(self, line: dict[str, Any]) -> None:
        self.accepted += line["accepted"]
        self.lost += line["lost"]
        self.recovery_seconds = max(self.recovery_seconds, line["recovery_seconds"])

    def told(self) -> tuple[str, str]:
        recovery = f"{self.recovery_seconds:.1f} s" if self.recovery_seconds else "no attempt was given up"
        return f"{self.lost} of {self.accepted}", recovery


# While tests run ----------------------------------------------------------------------------------------------------


def note(*, accepted: int, lost: int, recovery_seconds: float = 0.0) -> None:
    """Of the test that runs."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    _write({"test": test, "accepted": accepted, "lost": lost, "recovery_seconds": recovery_seconds})


def passed(test: str) -> None:
    """What was noted of it counts."""
    _write({"passed": test})


def _write(line: dict[str, Any]) -> None:
    """If a run of `make test-faults` asks for it."""
    if target := os.environ.get(FILE):
        with Path(target).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


# Afterwards ---------------------------------------------------------------------------------------------------------


def main() -> None:
    lines = (ROOT / "build" / "faults.jsonl").read_text("utf-8").splitlines()
    head, _, table = PAGE.read_text("utf-8").partition(MARK)
    known = _rows(table) | {test: cost.told() for test, cost in _costs(map(json.loads, lines)).items()}
    PAGE.write_text(head + MARK + "\n\n" + "\n".join(_table(known)) + "\n", encoding="utf-8")


def _rows(table: str) -> dict[str, tuple[str, str]]:
    """What the table says by now of each test."""
    found = filter(None, map(ROW.match, table.splitlines()))
    return {row["test"]: (row["lost"], row["recovery"]) for row in found}


def _costs(lines: Iterable[dict[str, Any]]) -> dict[str, Cost]:
    """By the name of the test, over all its parameters; of several notes of one, the last has seen the most."""
    last, good = dict[str, dict[str, Any]](), set[str]()
    for line in lines:
        if "passed" in line:
            good.add(line["passed"])
        else:
            last[line["test"]] = line
    costs: dict[str, Cost] = {}
    for test in good & last.keys():
        costs.setdefault(test.rpartition("::")[2].partition("[")[0], Cost()).add(last[test])
    return costs


def _table(known: dict[str, tuple[str, str]]) -> Iterator[str]:
    yield "| fault | jobs lost | longest recovery seen | command |"
    yield "|---|---|---|---|"
    for test, told in _tests():
        if test in known:
            lost, recovery = known[test]
            yield f"| {told} | {lost} | {recovery} | `make test-faults ARGS='-k {test}'` |"


def _tests() -> Iterator[tuple[str, str]]:
    """Those that there are: the name, and in words what it does and what its docstring says beside."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        for one in ast.parse(file.read_text("utf-8")).body:
            if isinstance(one, ast.FunctionDef) and one.name.startswith("test_"):
                words = one.name.removeprefix("test_").replace("_", " ").capitalize()
                told = ast.get_docstring(one)
                yield one.name, f"{words}. {' '.join(told.split())}" if told else f"{words}."


if __name__ == "__main__":
    main()
