"""Plays the Dockerfile without an engine: COPY as it stands, and RUN where it installs."""

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
    """Plays stages into one folder, `root`, with one virtual environment, `root/venv`, as the image's Python.

    One for all stages will do: the wheel's stage installs nothing, and the others do not share paths with it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stages = read_stages()
        self._workdirs: dict[str, Path] = {}  # of the stages that are built
        subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)

    def play(self, name: str, *, resolve_only: bool = False) -> None:
        """Build stage `name` and those it stands on; `resolve_only` resolves its own packages without installing."""
        if name in self._workdirs or name not in self._stages:
            return
        stage = self._stages[name]
        self.play(stage.parent)
        workdir, settings = self._workdirs.get(stage.parent, Path("/")), {}
        for instruction, rest in stage.instructions:
            if instruction == "WORKDIR":
                workdir = Path(rest)
            elif instruction == "ENV":
                settings |= dict(word.split("=", 1) for word in shlex.split(rest))
            elif instruction == "COPY":
                self._copy(rest.split(), workdir)
            elif instruction == "RUN" and rest.startswith(INSTALLS):
                command = rest.replace("pip install -c", "pip install --dry-run -c") if resolve_only else rest
                self._run(command, workdir, settings)
        if not resolve_only:
            self._workdirs[name] = workdir

    def _copy(self, words: list[str], workdir: Path) -> None:
        context = ROOT
        if words[0].startswith("--from="):
            self.play(words.pop(0).removeprefix("--from="))
            context = self.root
        *sources, target = words
        destination = _inside(self.root, workdir / target)
        for source in (_inside(context, Path(word)) for word in sources):
            into = destination / source.name if target.endswith("/") else destination
            into.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, into, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy(source, into)

    def _run(self, command: str, workdir: Path, settings: dict[str, str]) -> None:
        environment = os.environ | {name: settings[name] for name in SETTINGS & settings.keys()}
        environment["PIP_NO_COMPILE"] = "1"  # saves a third of the time
        environment["PATH"] = f"{self.root / 'venv' / 'bin'}:{environment['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=_inside(self.root, workdir),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def _inside(root: Path, path: Path) -> Path:
    """`path` of the image, below `root` on this machine."""
    return root / path.relative_to("/") if path.is_absolute() else root / path
