from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from elder_core.errors import Cancelled, MeasurementFailed, OutOfMemory
from elder_core.evaluation import memory
from elder_core.evaluation.memory import peak_memory

PROMPT = (1, 2, 3)


@pytest.fixture
def child_runs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`child_runs(code)`: the measuring process runs this instead, without the seconds that torch's import takes."""

    class Child(subprocess.Popen[str]):
        code = ""

        def __init__(self, command: Sequence[str], **settings: Any) -> None:
            super().__init__([command[0], "-c", self.code], **settings)

    def replace(code: str) -> None:
        monkeypatch.setattr(Child, "code", code)
        monkeypatch.setattr(subprocess, "Popen", Child)

    return replace


def test_a_fresh_process_measures_the_checkpoint(tiny_checkpoint: Path) -> None:
    weights = sum(file.stat().st_size for file in tiny_checkpoint.glob("*.safetensors"))
    ballast = bytearray(300 * 2**20)
    ballast[::4096] = b"x" * len(ballast[::4096])  # a parent larger than the child, every page of it touched

    assert weights < peak_memory(tiny_checkpoint, "cpu", PROMPT) < len(ballast)


def test_the_child_gets_the_task(child_runs: Any, tmp_path: Path) -> None:
    child_runs(
        "import json, sys; task = json.load(sys.stdin);"
        "print(json.dumps({'peak_bytes': 1000 * sum(task['prompt']) + task['new_tokens']}))"
    )

    assert peak_memory(tmp_path, "cpu", PROMPT, new_tokens=7) == 6007


def test_a_failure_carries_its_reason(child_runs: Any, tmp_path: Path) -> None:
    child_runs("raise SystemExit('the disk is on fire')")

    with pytest.raises(MeasurementFailed, match="exit code 1: the disk is on fire"):
        peak_memory(tmp_path / "model", "cpu", PROMPT)


@pytest.mark.parametrize(
    "code",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "raise MemoryError",
        "raise SystemExit('CUDA out of memory. Tried to allocate 20.00 GiB')",
    ],
)
def test_too_little_memory_has_its_own_error(child_runs: Any, tmp_path: Path, code: str) -> None:
    child_runs(code)

    with pytest.raises(OutOfMemory):
        peak_memory(tmp_path, "cpu", PROMPT)


def test_another_signal_is_named(child_runs: Any, tmp_path: Path) -> None:
    child_runs("import os, signal; os.kill(os.getpid(), signal.SIGABRT)")

    with pytest.raises(MeasurementFailed, match="signal 6: it wrote no reason"):
        peak_memory(tmp_path, "cpu", PROMPT)


def test_a_cancel_ends_the_child(child_runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "POLL_SECONDS", 0.01)
    child_runs("import time; time.sleep(600)")

    def cancelled() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        peak_memory(tmp_path, "cpu", PROMPT, check_cancelled=cancelled)


def test_fields_of_proc_status() -> None:
    assert memory._peak_resident_bytes() >= memory._resident_bytes() > 0
    assert memory._status_bytes("NoSuchField") is None
