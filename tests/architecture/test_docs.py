"""What the documents refer to exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from elder_core.architectures.table import ARCHITECTURES
from elder_core.registry import METHODS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]+)?\)")
MAKE = re.compile(r"\bmake ([a-z][a-z-]*)\b")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
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
    code = " ".join(CODE.findall(document.read_text("utf-8")))
    assert set(MAKE.findall(code)) <= targets


def test_make_help_shows_the_targets_that_people_use() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "check", "format", "serve", "clean"):
        assert f"make {target} " in shown


def test_readme_names_every_architecture_and_method() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in (*ARCHITECTURES, *METHODS) if f"`{name}`" not in readme] == []


def test_vendored_files_have_their_licence_beside_them() -> None:
    """Such as htmx.min.js beside htmx.LICENSE.txt."""
    files = [path for package in ("api", "elder_core") for glob in VENDORED for path in (ROOT / package).rglob(glob)]
    assert files
    lacking = [path for path in files if not list(path.parent.glob(f"{path.name.split('.')[0]}.LICENSE*"))]
    assert lacking == []
