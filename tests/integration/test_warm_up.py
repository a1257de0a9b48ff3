"""A worker that is stopped while it still loads torch leaves nothing behind, however it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.service import Service
from tests.integration.test_worker import left_alive

STOP_SECONDS = 10

# In place of torch, in the fork server: says that it is being loaded, and takes as long as on the coldest of machines.
SLOW_TORCH = """
import pathlib, time
pathlib.Path({marker!r}).touch()
time.sleep(600)
"""


@pytest.fixture
def slow_torch(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment in which torch never finishes loading, and the file that shows that it has begun."""
    marker = tmp_path / "loading"
    package = tmp_path / "packages" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(SLOW_TORCH.format(marker=str(marker)))
    environment = {**os.environ, "ELDER_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(package.parent)}
    return environment, marker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("command", ["worker", "serve"])
def test_a_stop_while_torch_is_loaded(
    slow_torch: tuple[dict[str, str], Path], tmp_path: Path, command: str, number: signal.Signals
) -> None:
    environment, marker = slow_torch
    service = Service(environment, tmp_path)
    assert service.server("migrate").wait(60) == 0, service.logs()
    arguments = ("serve", "--port", "0") if command == "serve" else ("worker",)
    server = service.server(*arguments)
    try:
        service.wait_for(lambda: marker.exists() and " ready." in service.logs(), bool)  # and Celery listens
        processes = psutil.Process(server.pid).children(recursive=True)
        assert any("multiprocessing.forkserver" in " ".join(process.cmdline()) for process in processes)
        deadline = time.monotonic() + STOP_SECONDS
        server.send_signal(number)
        server.wait(STOP_SECONDS)
        assert not left_alive(processes, max(0.0, deadline - time.monotonic())), service.logs()
    finally:
        kill(server)


def kill(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.kill()
        server.wait()
