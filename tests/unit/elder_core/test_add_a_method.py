"""The page on adding a method is followed to the letter, in a copy of the library."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "add-a-method.md").read_text("utf-8")
BLOCK = re.compile(r"^```python\n# (\S+?\.py)(?:: (.+?))?\n(.+?)^```", re.DOTALL | re.MULTILINE)

# where a block goes: before this text
PLACES = {
    "above MethodParameters": "MethodParameters = Annotated[",
    "in MethodParameters": "    | LastParameters,",
    "in the import of elder_core.parameters": "    RandomParameters,",
    "in METHODS": '        MethodEntry("last"',
}


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A folder with a copy of the library, changed as the page says."""
    shutil.copytree(ROOT / "elder_core", tmp_path / "elder_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name, place, code in BLOCK.findall(PAGE):
        path = tmp_path / name
        if not place:
            path.write_text(code, "utf-8")
            continue
        before, anchor, after = path.read_text("utf-8").partition(PLACES[place])
        assert anchor, place
        gap = "\n\n" if code.startswith("class") else ""
        path.write_text(before + code + gap + anchor + after, "utf-8")
    return tmp_path


def test_the_page_adds_a_method_that_works(edited: Path, tiny_checkpoint: Path) -> None:
    (edited / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    (edited / "b.txt").write_text("pack my box with five dozen liquor jugs! " * 20)
    command = f"prune --model {tiny_checkpoint} --layers-to-remove 2 --method quietest --out out"
    settings = (
        "keep_first=2",
        "calibration.sequence_length=16",
        "evaluation.speed=false",
        "evaluation.generation=false",
    )
    options = ["--calibration", "a.txt", "--evaluation", "b.txt", *(f"--set={setting}" for setting in settings)]
    program = [sys.executable, "-m", "elder_core", *command.split(), *options]
    done = subprocess.run(program, cwd=edited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((edited / "out" / "report.json").read_text("utf-8"))
    assert report["spec"]["method"]["keep_first"] == 2
    assert report["weight_label"] == "size of what the layer adds"
    assert len(report["removed_layers"]) == 2
    assert min(report["removed_layers"]) >= 2
    weights = [layer["weight"] for layer in report["layers"]]
    assert sorted(weights)[:2] == sorted(weights[layer] for layer in report["removed_layers"])


def test_the_page_is_as_short_as_it_says() -> None:
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count("```python") == len(PLACES) + 1
    lines = [line for _, _, code in blocks for line in code.splitlines() if line.strip()]
    assert len(lines) < 60
