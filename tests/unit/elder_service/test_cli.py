"""`elder-server` says in one sentence why it does not start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from elder_service.db.engine import make_engine
from elder_service.db.schema import expected_head, migrate
from elder_service.processes import die_with_parent
from tests.servers import free_port


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No settings but those that a test sets; no .env either, since commands run in an empty folder."""
    monkeypatch.setenv("ELDER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def server(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "elder_service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", [["api", "--port", "0"], ["worker"]], ids=["api", "worker"])
def test_another_schema_is_one_sentence(environment: pytest.MonkeyPatch, tmp_path: Path, command: list[str]) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'data' / 'elder.db'}")
    migrate(engine, "base")
    engine.dispose()
    done = server(*command)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error [schema_mismatch]: The database is at migration none, this version of the service needs "
        f"{expected_head()}. Run `elder-server migrate` with this version, or start the version that fits the database."
    ]


def test_a_database_that_is_away_is_one_sentence_without_its_password(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ELDER_DATABASE_URL", f"postgresql://elder:pass-word@127.0.0.1:{free_port()}/elder")
    done = server("api", "--port", "0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error [database_unreachable]: The database postgresql://elder:***@127.0.0.1")
    assert "pass-word" not in done.stderr


@pytest.mark.parametrize("command", ["api", "serve", "worker", "migrate", "health"])
def test_a_malformed_setting_is_one_sentence(environment: pytest.MonkeyPatch, command: str) -> None:
    environment.setenv("ELDER_LEASE_SECONDS", "a minute")
    done = server(command)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error [invalid_settings]: ELDER_LEASE_SECONDS cannot be 'a minute': ")


def test_a_process_whose_parent_died_first_ends_itself() -> None:
    """Such as a worker whose server was killed while the worker was still starting."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    program = f"from elder_service.processes import {die_with_parent.__name__} as tie; tie({gone.pid}); print('alive')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-9, "")
