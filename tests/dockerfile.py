"""Plays the Dockerfile without an engine: COPY as it stands, and RUN where it installs, each stage in its own venv."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
INSTALLS = ("pip ", "python ")
# of ENV only what decides on versions: the paths are those of the image, and pip's cache makes the test shorter
SETTINGS = {"PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"}


@dataclass
class Stage:
    """A stage's parent, and its instructions in order as (name, rest of the line)."""

    parent: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def read_stages() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    for line in filter(None, re.sub(r"\\\n\s*", "", text).splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            parent, _, stage = rest.partition(" AS ")
            stages[stage] = Stage(parent)
        else:
            stages[list(stages)[-1]].instructions.append((name, rest))
    return stages


class Player:
    """Builds stages below `folder`. With `resolve_only`, packages from the index are resolved but not installed."""

    def __init__(self, folder: Path, *, resolve_only: bool = False) -> None:
        self._folder = folder
        self._stages = read_stages()
        self._resolve_only = resolve_only

    def build(self, name: str) -> Path:
        """The stage's root folder once it is built; `venv` in it stands for the image's Python."""
        root = self._folder / name
        subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
        chain, settings, workdir = [], {}, Path("/")
        while name in self._stages:
            chain.insert(0, self._stages[name])
            name = chain[0].parent
        for instruction, rest in (step for stage in chain for step in stage.instructions):
            if instruction == "WORKDIR":
                workdir = Path(rest)
            elif instruction == "ENV":
                settings |= dict(word.split("=", 1) for word in shlex.split(rest))
            elif instruction == "COPY":
                self._copy(rest.split(), root, workdir)
            elif instruction == "RUN" and rest.startswith(INSTALLS):
                self._run(rest, root, workdir, settings)
        return root

    def _copy(self, words: list[str], root: Path, workdir: Path) -> None:
        context = ROOT
        if words[0].startswith("--from="):
            context = self._folder / words[0].removeprefix("--from=")
            words = words[1:]
            if not context.exists():
                self.build(context.name)
        *sources, target = words
        destination = _inside(root, workdir / target)
        for source in (_inside(context, Path(word)) for word in sources):
            into = destination / source.name if target.endswith("/") else destination
            into.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, into)

    def _run(self, command: str, root: Path, workdir: Path, settings: dict[str, str]) -> None:
        if self._resolve_only:
            command = command.replace("pip install -c", "pip install --dry-run -c")
        environment = os.environ | {name: settings[name] for name in SETTINGS & settings.keys()}
        environment["PATH"] = f"{root / 'venv' / 'bin'}:{environment['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=_inside(root, workdir),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def _inside(root: Path, path: Path) -> Path:
    """`path` of the image, below `root` on this machine."""
    return root / path.relative_to("/") if path.is_absolute() else root / path
