"""Hints do not outlive their use."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from elder_service import queue
from elder_service.jobs.reconcile import HINT_AGAIN
from elder_service.settings import Settings


@pytest.fixture(params=["folders", "redis"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Celery:
    broker_url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    app = queue.make_celery(Settings(data_dir=tmp_path / "data", broker_url=broker_url))
    app.conf.task_default_queue = f"test-{tmp_path.name}"  # tests share the Redis
    return app


def test_a_worker_drops_a_hint_that_is_too_old(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, seen = [], threading.Event()

    def run_next_job() -> None:
        taken.append(time.monotonic())
        seen.set()

    app.task(run_next_job, name=queue.HINT_TASK, ignore_result=True)
    with monkeypatch.context() as patched:
        patched.setattr(queue, "HINT_LIFE_SECONDS", 0.05)
        assert all(queue.send_hint(app) for _ in range(3))
    time.sleep(0.2)
    assert queue.send_hint(app)  # the last in the queue: when it is taken, the worker has seen the others
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
        assert seen.wait(60)
    assert len(taken) == 1


def test_a_hint_lives_no_longer_than_until_the_next_one() -> None:
    assert HINT_AGAIN.total_seconds() >= queue.HINT_LIFE_SECONDS
