"""What a job's process has loaded when it begins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.forkserver import SPIN_COUNT, wait_briefly

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


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPIN_COUNT}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_how_threads_wait_is_the_users_word_first(given: dict[str, str], wanted: dict[str, str]) -> None:
    wait_briefly(given)
    assert given == wanted
