"""Folders that one worker makes while another sweeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker import scratch


def test_a_sweep_that_takes_the_jobs_empty_folder_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = tmp_path / "jobs" / "job_1" / "attempt-2"
    mkdir, swept = os.mkdir, []

    def watched(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if path == attempt.parent and len(swept) < 2:
            scratch.remove_if_empty(path)
            swept.append(path)

    monkeypatch.setattr(os, "mkdir", watched)
    scratch.make(attempt)
    assert attempt.is_dir()
    assert len(swept) == 2


def test_what_cannot_be_made_is_told(tmp_path: Path) -> None:
    link = tmp_path / "jobs"
    link.symlink_to(tmp_path / "unmounted")
    with pytest.raises(OSError, match="jobs"):
        scratch.make(link / "job_1" / "attempt-1")


def test_the_jobs_folder_goes_with_its_last_attempt(tmp_path: Path) -> None:
    first, second = (tmp_path / "jobs" / "job_1" / f"attempt-{number}" for number in (1, 2))
    scratch.make(first)
    scratch.make(second)
    (first / "log.txt").write_text("what was said")
    scratch.clear(first)
    assert second.is_dir()
    scratch.clear(second)
    assert not first.parent.exists()
