"""Hints do not outlive their use."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from queue import Empty

import pytest
from celery import Celery

from elder_service import queue
from elder_service.jobs.reconcile import HINT_AGAIN
from elder_service.settings import Settings

# A worker in a process of its own, since Celery keeps a worker's state in modules.
WORKER = """
import sys
from elder_service import queue
from elder_service.settings import Settings
app = queue.make_celery(Settings())
app.conf.task_default_queue = sys.argv[1]
def run_next_job():
    with open(sys.argv[2], "a") as file:
        file.write("taken ")
app.task(run_next_job, name=queue.HINT_TASK, ignore_result=True)
app.worker_main(["worker", "--pool=threads", "--concurrency=1", "--without-gossip", "--without-mingle"])
"""
WAIT_SECONDS = 60


def waiting(app: Celery) -> int:
    """How many hints the broker still has."""
    with app.connection_for_read() as connection:
        found = connection.default_channel.queue_declare(app.conf.task_default_queue)
        return int(found.message_count)


@pytest.mark.parametrize("broker", ["folders", "redis"])
def test_a_worker_drops_a_hint_that_is_too_old(
    broker: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELDER_DATA_DIR", str(tmp_path / "data"))
    if broker == "redis":
        monkeypatch.setenv("ELDER_BROKER_URL", request.getfixturevalue("redis_url"))
    app = queue.make_celery(Settings())
    app.conf.task_default_queue = f"test-{tmp_path.name}-{time.monotonic_ns()}"  # tests share the Redis
    with monkeypatch.context() as patched:
        patched.setattr(queue, "HINT_LIFE_SECONDS", 0.05)
        assert all(queue.send_hint(app) for _ in range(3))
    time.sleep(0.2)
    assert queue.send_hint(app)
    taken, log = tmp_path / "taken", tmp_path / "log"
    command = [sys.executable, "-c", WORKER, app.conf.task_default_queue, str(taken)]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as worker:
        try:
            end = time.monotonic() + WAIT_SECONDS
            while not (taken.exists() and waiting(app) == 0) and time.monotonic() < end:
                time.sleep(0.05)
        finally:
            worker.terminate()  # it finishes what it has taken
    assert taken.exists(), log.read_text()
    assert taken.read_text() == "taken "
    app.close()


def test_a_hint_lives_no_longer_than_until_the_next_one() -> None:
    assert HINT_AGAIN.total_seconds() >= queue.HINT_LIFE_SECONDS


def test_a_message_that_is_not_whole_is_passed_over(tmp_path: Path) -> None:
    """As a sender leaves it that was killed between making the file and writing it: it ended the worker."""
    settings = Settings(data_dir=tmp_path)
    app = queue.make_celery(settings)
    with app.connection_for_read() as connection, connection.SimpleQueue(queue.QUEUE) as listened:
        (settings.broker_dir / "queue" / f"0_half.{queue.QUEUE}.msg").write_bytes(b'{"body": ')
        with pytest.raises(Empty):
            listened.get(block=False)
        assert queue.send_hint(app)
        assert listened.get(timeout=5).headers["task"] == queue.HINT_TASK
