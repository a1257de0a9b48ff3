"""What is swept and what is not, and how many hints a pass of reconcile sends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import event

from elder_core.disk import file_sha256
from elder_service import queue
from elder_service.db.engine import SessionFactory, make_engine, make_sessions
from elder_service.db.schema import migrate
from elder_service.jobs import attempts
from elder_service.jobs.attempts import Claim, Outcome
from elder_service.settings import Settings
from elder_service.storage.base import StoredFile, attempt_of, attempt_prefix, journal_prefix
from elder_service.storage.local import LocalStorage
from tests.unit.elder_service.conftest import submit
from worker.maintenance import Maintenance


@pytest.fixture
def storage(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.artifacts_dir)


@pytest.fixture
def maintenance(settings: Settings, sessions: SessionFactory, storage: LocalStorage) -> Maintenance:
    return Maintenance(settings, sessions, storage, Celery(set_as_current=False))


def claim(sessions: SessionFactory) -> Claim:
    with sessions.begin() as session:
        held = attempts.claim(session, "worker-1", 60)
    assert held is not None
    return held


def write_file(storage: LocalStorage, settings: Settings, held: Claim) -> StoredFile:
    """A file of the attempt in storage, not visible yet."""
    source = settings.data_dir / "source"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(b"abc")
    key = f"{attempt_prefix(held.job_id, held.attempt)}/model/x"
    storage.put(key, source, file_sha256(source))
    return StoredFile("model/x", "model", key, 3, "f" * 64)


def succeed(sessions: SessionFactory, held: Claim, file: StoredFile) -> None:
    with sessions.begin() as session:
        attempts.succeed(session, held, Outcome(result={}, files=(file,)))


def test_visible_files_and_those_of_a_running_attempt_stay(
    maintenance: Maintenance, settings: Settings, sessions: SessionFactory, storage: LocalStorage
) -> None:
    submit(sessions)
    done = claim(sessions)
    visible = write_file(storage, settings, done)
    succeed(sessions, done, visible)
    submit(sessions)
    unfinished = write_file(storage, settings, claim(sessions))
    maintenance.sweep()
    assert storage.path(visible.key).is_file()
    assert storage.path(unfinished.key).is_file()


def test_files_of_an_attempt_that_gave_up_its_job_go(
    maintenance: Maintenance, settings: Settings, sessions: SessionFactory, storage: LocalStorage
) -> None:
    submit(sessions)
    first = claim(sessions)
    write_file(storage, settings, first)
    with sessions.begin() as session:
        attempts.give_back(session, first)
    second = claim(sessions)
    kept = write_file(storage, settings, second)
    maintenance.sweep()
    job_folder = f"jobs/{first.job_id}"
    assert list(storage.list_prefixes(job_folder)) == [f"{job_folder}/attempt-2"]
    assert storage.path(kept.key).is_file()


def test_a_journal_goes_when_its_job_has_ended(
    maintenance: Maintenance, settings: Settings, sessions: SessionFactory, storage: LocalStorage
) -> None:
    submit(sessions)
    held = claim(sessions)
    journal = settings.artifacts_dir / journal_prefix(held.job_id)
    settings.data_dir.mkdir(exist_ok=True)
    page = settings.data_dir / "page"
    page.write_bytes(b"abc")
    storage.put(f"{journal_prefix(held.job_id)}/page", page, file_sha256(page))

    maintenance.sweep()
    there = [journal.exists()]
    with sessions.begin() as session:
        attempts.give_back(session, held)
    maintenance.sweep()
    there.append(journal.exists())
    succeed(sessions, claim(sessions), write_file(storage, settings, held))
    maintenance.sweep()
    there.append(journal.exists())

    assert there == [True, True, False]


def test_a_worker_with_another_database_deletes_nothing(
    settings: Settings, sessions: SessionFactory, storage: LocalStorage, tmp_path: Path
) -> None:
    """As one that was started without ELDER_DATABASE_URL, on the data of those that have it."""
    submit(sessions)
    done = claim(sessions)
    succeed(sessions, done, write_file(storage, settings, done))
    submit(sessions)
    running = claim(sessions)
    write_file(storage, settings, running)
    kept = [
        settings.artifacts_dir / attempt_prefix(done.job_id, 1) / "model" / "x",
        settings.artifacts_dir / attempt_prefix(running.job_id, 1) / "model" / "x",
        settings.artifacts_dir / journal_prefix(running.job_id) / "page",
        settings.scratch_dir / attempt_prefix(running.job_id, 1) / "log.txt",
    ]
    for path in kept[2:]:
        path.parent.mkdir(parents=True)
        path.touch()
    other = make_engine(f"sqlite:///{tmp_path / 'other.db'}")
    migrate(other)
    Maintenance(settings, make_sessions(other), storage, Celery(set_as_current=False)).sweep()
    assert all(path.is_file() for path in kept)
    other.dispose()


def test_a_folder_that_is_no_attempts_stays(maintenance: Maintenance, settings: Settings) -> None:
    foreign = settings.artifacts_dir / "jobs" / "job_x" / "notes"
    foreign.mkdir(parents=True)
    maintenance.sweep()
    assert foreign.is_dir()
    assert attempt_of("jobs/job_x/notes") is None
    assert attempt_of(attempt_prefix("job_x", 12)) == ("job_x", 12)


def test_a_job_that_succeeds_while_the_sweep_looks_keeps_its_files(
    settings: Settings, storage: LocalStorage, postgres_database: str
) -> None:
    """On PostgreSQL alone: on SQLite nobody commits while the sweep's transaction is open."""
    engine = make_engine(postgres_database)
    migrate(engine)
    sessions = make_sessions(engine)
    submit(sessions)
    held = claim(sessions)
    file = write_file(storage, settings, held)
    swept = make_engine(postgres_database)
    statements: list[str] = []

    @event.listens_for(swept, "after_cursor_execute")
    def succeed_after_the_first_look(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT") and ("FROM jobs" in statement or "FROM artifacts" in statement):
            statements.append(statement)
            if len(statements) == 1:
                succeed(sessions, held, file)

    maintenance = Maintenance(settings, make_sessions(swept), storage, Celery(set_as_current=False))
    maintenance.sweep()  # sees the running attempt, or the finished one with its files, but never half of each
    maintenance.sweep()
    assert len(statements) >= 2
    assert storage.path(file.key).is_file()
    swept.dispose()
    engine.dispose()


def test_scratch_space_goes_with_the_attempt_and_leaves_no_empty_folder(
    maintenance: Maintenance, settings: Settings, sessions: SessionFactory
) -> None:
    def scratch(job_id: str, attempt: int) -> Path:
        folder = settings.scratch_dir / attempt_prefix(job_id, attempt)
        folder.mkdir(parents=True)
        (folder / "log.txt").write_text("x")
        return folder

    submit(sessions)
    held = claim(sessions)
    running = scratch(held.job_id, held.attempt)
    lost = scratch(submit(sessions), 1)
    empty = settings.scratch_dir / "jobs" / "job_empty"
    empty.mkdir()
    maintenance.sweep()
    assert running.is_dir()
    assert not lost.parent.exists()
    assert not empty.exists()


def test_a_pass_sends_one_hint_for_all_jobs(
    maintenance: Maintenance, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Celery] = []
    monkeypatch.setattr(queue, "send_hint", lambda app: not sent.append(app))
    maintenance.reconcile()
    assert sent == []
    for _ in range(3):
        submit(sessions)
    maintenance.reconcile()
    assert len(sent) == 1
    maintenance.reconcile()
    assert len(sent) == 1


def test_tokens_that_no_job_uses_are_swept(maintenance: Maintenance, settings: Settings) -> None:
    settings.token_cache_dir.mkdir(parents=True)
    old, new = (settings.token_cache_dir / f"{letter * 64}.safetensors" for letter in "ab")
    for file in (old, new):
        file.touch()
    then = old.stat().st_mtime - 31 * 86_400
    os.utime(old, (then, then))
    maintenance.sweep()
    assert list(settings.token_cache_dir.iterdir()) == [new]
