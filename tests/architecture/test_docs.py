"""What the documents refer to exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from elder_core.architectures.table import ARCHITECTURES, MULTIMODAL
from elder_core.parameters import ElderParameters
from elder_core.registry import METHODS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]+)?\)")
MAKE = re.compile(r"\bmake ([a-z][a-z-]*)\b")
# fenced, indented by four, or within a line
CODE = re.compile(r"```.*?```|^ {4}[^\n]+|`[^`\n]+`", re.DOTALL | re.MULTILINE)
VENDORED = ("*.min.js", "*.umd.min.js")


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for target, anchor in LINK.findall(document.read_text("utf-8")):
        path = (document.parent / target).resolve()
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target + anchor)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert make_targets(document.read_text("utf-8")) <= targets


def make_targets(text: str) -> set[str]:
    """Those that the code in a document names."""
    return {target for code in CODE.findall(text) for target in MAKE.findall(code)}


def test_code_is_found_however_it_is_written() -> None:
    text = "we make it\n\n    make one  # with make two\n\n```\nA=1 make three\n```\n\nUse `make four`, or make do.\n"
    assert make_targets(text) == {"one", "two", "three", "four"}
    assert make_targets((ROOT / "README.md").read_text("utf-8")) >= {"demo", "serve", "test", "check"}


def test_make_help_shows_the_targets_that_people_use() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "check", "format", "serve", "clean"):
        assert f"make {target} " in shown


def test_readme_names_every_architecture_and_method() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in (*ARCHITECTURES, *MULTIMODAL, *METHODS) if f"`{name}`" not in readme] == []


def test_readme_has_the_published_method() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert ElderParameters.model_validate_json(block) == ElderParameters.of_the_paper()


def test_the_card_of_the_bundled_model_is_that_of_its_template() -> None:
    models = ROOT / "examples" / "models"
    template = re.escape((models / "manuals_card.md").read_text("utf-8"))
    field = re.compile(r"\\{(\w+)(?::[^}]*)?\\}")
    card = (models / "manuals-16l" / "README.md").read_text("utf-8")
    found = re.fullmatch(field.sub(r"(?P<\1>.+?)", template), card, re.DOTALL)
    assert found
    files = [file for file in (models / "manuals-16l").iterdir() if file.name != "README.md"]
    size = sum(file.stat().st_size for file in files)
    assert found["megabytes"] == f"{size / 1e6:.1f}"
    assert size < 16e6


def test_vendored_files_have_their_licence_beside_them() -> None:
    """Such as htmx.min.js beside htmx.LICENSE.txt."""
    files = [path for package in ("api", "elder_core") for glob in VENDORED for path in (ROOT / package).rglob(glob)]
    assert files
    lacking = [path for path in files if not list(path.parent.glob(f"{path.name.split('.')[0]}.LICENSE*"))]
    assert lacking == []


def test_the_page_of_benchmarks_is_that_of_the_results() -> None:
    made = subprocess.run([sys.executable, ROOT / "benchmarks" / "quality_table.py", "--check"], check=False)
    assert made.returncode == 0, "run: python benchmarks/quality_table.py"
