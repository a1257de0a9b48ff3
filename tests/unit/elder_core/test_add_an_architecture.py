"""The page on adding an architecture is followed to the letter, in a copy of the library."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "add-an-architecture.md").read_text("utf-8")
BLOCK = re.compile(r"^```python\n# (\S+?\.py): (.+?)\n(.+?)^```", re.DOTALL | re.MULTILINE)

# where a block goes: before this text
PLACES = {"in ARCHITECTURES": '        Architecture("llama",', "in TINY": '    "llama": {'}

TRY = """
import sys
from pathlib import Path
from tests.unit.elder_core.acceptance import SETS, run, sets_of
from tests.unit.elder_core.conftest import build_tokenizer

allowed, refused = sets_of("ctrl")
assert (allowed, refused) == (list(SETS), [])
results = run({"ctrl": allowed}, Path(sys.argv[1]), build_tokenizer())
assert [result.problems for result in results] == [()] * len(SETS), results
"""


def test_the_page_adds_an_architecture_that_passes(tmp_path: Path) -> None:
    for package in ("elder_core", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count("```python") == len(PLACES)
    for name, place, code in blocks:
        path = tmp_path / name
        whole = path.read_text("utf-8")
        assert whole.count(code) == 1, "the page says what the repository has"
        before, anchor, after = whole.replace(code, "").partition(PLACES[place])
        assert anchor, place
        path.write_text(before + code + anchor + after, "utf-8")
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", TRY, "out"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
