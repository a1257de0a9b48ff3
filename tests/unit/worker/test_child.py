"""How a job's process ends, with real processes that need no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
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


@pytest.mark.parametrize(("later", "code"), [(3, "runner_died"), (4, "out_of_memory")])
def test_a_process_that_the_kernel_killed_was_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, assignment: Assignment, tmp_path: Path, later: int, code: str
) -> None:
    counters = tmp_path / "vmstat"
    monkeypatch.setattr(module, "VMSTAT", counters)
    counters.write_text("pgfault 12\noom_kill 3\nzone_reclaim_success 0\n")
    child = started(monkeypatch, assignment)
    counters.write_text(f"pgfault 90\noom_kill {later}\nzone_reclaim_success 0\n")
    child.end()
    error, details = child.death()
    assert (error.code, details["signal"]) == (code, "SIGKILL")
    child.kill()


def test_where_the_kernel_does_not_tell_nobody_was_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "VMSTAT", tmp_path / "there is none")
    assert module.kernel_kills() == 0
    monkeypatch.setattr(module, "VMSTAT", tmp_path / "old")
    (tmp_path / "old").write_text("pgfault 12\n")
    assert module.kernel_kills() == 0


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
