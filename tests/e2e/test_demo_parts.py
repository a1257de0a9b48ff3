"""The parts of examples/demo.py that judge: nothing of the server is left, and every file is the right one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"

# A server with a worker in a session of its own, as `elder-server serve` has. Both print a line when they are ready.
SERVER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
print(worker.pid, flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""
TIED = """
import time
from elder_service.processes import die_with_parent
die_with_parent()
print("tied", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("elder_demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def start(worker: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """The server and its worker, both ready."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, worker], stdout=subprocess.PIPE, start_new_session=True, cwd=DEMO.parents[1]
    )
    assert server.stdout is not None
    lines = {server.stdout.readline().strip() for _ in range(2)}
    pid = next(int(line) for line in lines if line.isdigit())
    return server, psutil.Process(pid)


def test_a_server_that_takes_everything_along_stops_well(demo: ModuleType) -> None:
    server, worker = start(TIED)
    demo.stop(server)
    assert server.returncode is not None
    assert not demo.runs(worker)
    server.stdout.close()


def test_a_worker_that_outlives_the_server_is_found_and_killed(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "STOP_SECONDS", 0.5)
    server, worker = start(STUBBORN)
    with pytest.raises(demo.DemoFailed, match=f"killed: {worker.pid}"):
        demo.stop(server)
    psutil.wait_procs([worker], timeout=30)
    assert not demo.runs(worker)
    server.stdout.close()


def test_a_server_that_is_gone_already_is_no_fault(demo: ModuleType) -> None:
    server = subprocess.Popen([sys.executable, "-c", ""])
    server.wait()
    demo.stop(server)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of two files and the manifest that describes them."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    files = {path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in tmp_path.iterdir()}
    (tmp_path / "elder.json").write_text(json.dumps({"files": files}))
    return tmp_path


def test_right_hashes_pass(demo: ModuleType, model: Path) -> None:
    demo.verify_hashes(model)


def test_a_changed_file_is_found(demo: ModuleType, model: Path) -> None:
    (model / "config.json").write_text("changed")
    with pytest.raises(demo.DemoFailed, match=r"config\.json is not the file"):
        demo.verify_hashes(model)


def test_a_file_too_many_is_found(demo: ModuleType, model: Path) -> None:
    (model / "more.bin").write_text("x")
    with pytest.raises(demo.DemoFailed, match=r"more\.bin"):
        demo.verify_hashes(model)


def test_a_missing_file_is_found(demo: ModuleType, model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(demo.DemoFailed, match="holds"):
        demo.verify_hashes(model)
