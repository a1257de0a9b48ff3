"""How a job's process ends, with real processes that need no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from elder_core.inspection import Sources
from elder_core.spec import JobSpec, ModelRef, Progress, Stage
from elder_service.jobs.attempts import Outcome
from worker import child as module
from worker.child import DISCARD, Assignment, Child, log_tail


@pytest.fixture
def assignment(tmp_path: Path) -> Assignment:
    return Assignment(
        job_id="job_x",
        attempt=1,
        spec=JobSpec(model=ModelRef(id="builtin:manuals-16l"), ratio=0.25),
        sources=Sources(model_roots=(), text_roots=()),
        device="cpu",
        scratch=tmp_path / "scratch",
        artifacts_dir=tmp_path / "artifacts",
        journal_seconds=60,
    )


def silent(assignment: Assignment, connection: Connection) -> None:
    """Close the pipe and go on, deaf to SIGTERM."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(DISCARD, signal.SIG_IGN)
    assignment.log_path.write_text("before\nlast words\n")
    connection.close()
    time.sleep(600)


def talkative(_: Assignment, connection: Connection) -> None:
    """Hear SIGTERM only between messages, and send more of them than the pipe holds before ending by itself."""
    os.setsid()
    signal.signal(DISCARD, signal.SIG_IGN)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    connection.send(b"")
    while not stopping:
        connection.send(bytes(100_000))
    connection.send(bytes(1_000_000))


def quick(_: Assignment, connection: Connection) -> None:
    """Be done, before anybody has read a word."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setsid()
    for step in range(3):
        connection.send(Progress(stage=Stage.EVALUATING, step=step, total=3))
    connection.send(Outcome(result={"removed_layers": [3]}))
    connection.close()


def started(monkeypatch: pytest.MonkeyPatch, assignment: Assignment) -> Child:
    """A child that is silent by now."""
    monkeypatch.setattr(module, "child_main", silent)
    child = Child(multiprocessing.get_context("spawn"), assignment)  # type: ignore[arg-type]
    assert child.connection.poll(60)
    with pytest.raises(EOFError):
        child.connection.recv()
    return child


def test_a_process_that_falls_silent_is_killed(monkeypatch: pytest.MonkeyPatch, assignment: Assignment) -> None:
    monkeypatch.setattr(module, "DEATH_SECONDS", 0.1)
    child = started(monkeypatch, assignment)
    error, details = child.death()
    assert "stopped telling" in error.message
    assert details == {"log_tail": ["before", "last words"]}
    child.kill()


def test_a_process_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch, assignment: Assignment) -> None:
    child = started(monkeypatch, assignment)
    rounds: list[int] = []
    child.stop(0.3, lambda: rounds.append(1))
    error, details = child.death()
    assert "SIGKILL" in error.message
    assert details["signal"] == "SIGKILL"
    assert len(rounds) > 1, "nobody renews the lease while the process is waited for"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], object]:
    """Sets the kernel's counter of the processes that it killed for want of memory."""
    counters = tmp_path / "vmstat"
    monkeypatch.setattr(module, "VMSTAT", counters)
    return lambda kills: counters.write_text(f"pgfault 12\noom_kill {kills}\nzone_reclaim_success 0\n")


def heard_until_the_end(child: Child) -> None:
    """As the worker does, from look to look."""
    for _ in range(3):
        with suppress(EOFError):
            child.heard(0)


@pytest.mark.parametrize(("later", "code"), [(3, "runner_died"), (4, "out_of_memory")])
def test_a_process_that_the_kernel_killed_was_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, assignment: Assignment, counted: Callable[[int], object], later: int, code: str
) -> None:
    counted(3)
    child = started(monkeypatch, assignment)
    heard_until_the_end(child)
    counted(later)
    heard_until_the_end(child)  # it takes a moment to be gone
    child.end()
    error, details = child.death()
    assert (error.code, details["signal"]) == (code, "SIGKILL")
    assert "often the kernel" not in error.message, "it would have told"
    child.kill()


def test_what_the_kernel_killed_long_ago_was_another(
    monkeypatch: pytest.MonkeyPatch, assignment: Assignment, counted: Callable[[int], object]
) -> None:
    monkeypatch.setattr(module, "LATELY_SECONDS", 0.0)  # so that each look is long after the last
    counted(3)
    child = started(monkeypatch, assignment)
    counted(4)
    heard_until_the_end(child)
    child.end()
    assert child.death()[0].code == "runner_died"
    child.kill()


@pytest.mark.parametrize("counters", [None, "pgfault 12\n"])
def test_where_the_kernel_does_not_tell_it_is_only_a_guess(
    monkeypatch: pytest.MonkeyPatch, assignment: Assignment, tmp_path: Path, counters: str | None
) -> None:
    monkeypatch.setattr(module, "VMSTAT", tmp_path / "vmstat")
    if counters:
        (tmp_path / "vmstat").write_text(counters)
    child = started(monkeypatch, assignment)
    heard_until_the_end(child)
    child.end()
    error, _ = child.death()
    assert (error.code, "often the kernel" in error.message) == ("runner_died", True)
    child.kill()


def test_a_full_pipe_does_not_hold_a_process_that_stops(
    monkeypatch: pytest.MonkeyPatch, assignment: Assignment
) -> None:
    monkeypatch.setattr(module, "child_main", talkative)
    child = Child(multiprocessing.get_context("spawn"), assignment)  # type: ignore[arg-type]
    assert child.connection.recv() == b""
    child.stop(60, lambda: None, keep=True)
    _, details = child.death()
    assert details["exit_code"] == 0


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "still there"])
def test_an_outcome_that_nobody_has_read_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, assignment: Assignment, *, gone: bool
) -> None:
    monkeypatch.setattr(module, "child_main", quick)
    child = Child(multiprocessing.get_context("spawn"), assignment)  # type: ignore[arg-type]
    assert child.connection.poll(60)
    if gone:
        child._process.join()
    assert child.stop(60, lambda: None, keep=True) == Outcome(result={"removed_layers": [3]})


def test_the_tail_of_a_log_is_text_that_a_database_keeps(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"progress \x00 bar\n\xff\n")
    assert log_tail(log) == ["progress \ufffd bar", "\ufffd"]
