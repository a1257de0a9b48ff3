"""What a job's process has loaded when it begins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import pathlib
with pathlib.Path("imports").open("a") as log:
    log.write("x")
if __name__ == "__main__":
    from worker import forkserver
    forkserver.PRELOADED = ("worker.forkserver_guard",)
    forkserver.ForkServer().warm_up()
"""


def test_the_script_that_was_started_is_not_imported_into_every_job(tmp_path: Path) -> None:
    """`elder-server` is such a script; with it a job starts a quarter of a second later."""
    (tmp_path / "server.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "server.py"], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "imports").read_text() == "x"
