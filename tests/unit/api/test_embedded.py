"""The worker of `elder-server serve` is started again when it ends or cannot be started."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from api import embedded
from api.embedded import EmbeddedWorker
from elder_service.settings import Settings

PATIENCE_SECONDS = 60


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "RESTART_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(embedded, "RESTART_MOST_SECONDS", 0.02)


def python(program: str) -> Sequence[str]:
    return (sys.executable, "-c", program)


def watch_until(command: Sequence[str | Path], settings: Settings, done: Callable[[], bool]) -> None:
    """Have the worker `command` watched over until `done`."""

    async def watch() -> None:
        async with EmbeddedWorker(settings, command).running(), asyncio.timeout(PATIENCE_SECONDS):
            while not done():
                await asyncio.sleep(0.01)

    asyncio.run(watch())


def test_a_worker_that_ends_is_started_again(settings: Settings, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    program = python(f"open({str(starts)!r}, 'a').write('x'); raise SystemExit(3)")
    watch_until(program, settings, lambda: starts.exists() and len(starts.read_text()) >= 3)


def test_a_worker_that_is_killed_is_started_again(settings: Settings, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = python(f"import os, time; print(os.getpid(), file=open({str(pids)!r}, 'a')); time.sleep(600)")
    seen: list[int] = []

    def killed_once() -> bool:
        lines = pids.read_text().splitlines() if pids.exists() else []
        if len(lines) > len(seen):
            seen.append(int(lines[-1]))
            if len(seen) == 1:
                os.kill(seen[0], 9)
        return len(seen) == 2

    watch_until(program, settings, killed_once)
    assert not psutil.pid_exists(seen[1])


def test_a_worker_that_cannot_be_started_is_tried_again(settings: Settings, tmp_path: Path) -> None:
    """As when processes or memory run out for a while."""
    program, started = tmp_path / "worker", tmp_path / "started"
    looks: list[int] = []

    def done() -> bool:
        looks.append(1)
        if len(looks) == 20:  # until here there is no such program, which is an OSError at every start
            written = program.with_suffix(".new")
            written.write_text(f"#!/bin/sh\ntouch {started}\n")
            written.chmod(0o755)
            written.rename(program)
        return started.exists()

    watch_until((program,), settings, done)


def test_the_worker_gets_the_settings_that_were_given(tmp_path: Path) -> None:
    given = Settings(
        data_dir=tmp_path, secret_key=SecretStr("k" * 40), text_roots=(tmp_path, tmp_path), public_url=None
    )
    environment = embedded._as_environment(given)
    assert environment["ELDER_SECRET_KEY"] == "k" * 40
    assert environment["ELDER_TEXT_ROOTS"] == f"{tmp_path},{tmp_path}"
    assert "ELDER_PUBLIC_URL" not in environment
