"""`elder-server health` says whether the worker of this machine is well."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from elder_service.cli import HEALTHY_SECONDS, app
from elder_service.settings import Settings
from worker.pulse import Pulse, pulse_of


@pytest.fixture
def pulse(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Pulse:
    settings.data_dir.mkdir()
    monkeypatch.setenv("ELDER_DATA_DIR", str(settings.data_dir))
    return pulse_of(settings)


def test_health_follows_the_pulse(pulse: Pulse) -> None:
    missing = CliRunner().invoke(app, ["health"])
    assert (missing.exit_code, "there is no" in missing.output) == (1, True)
    pulse.beat()
    assert CliRunner().invoke(app, ["health"]).exit_code == 0
    old = time.time() - 2 * HEALTHY_SECONDS
    os.utime(pulse.path, (old, old))
    stale = CliRunner().invoke(app, ["health"])
    assert (stale.exit_code, "has not reached the database" in stale.output) == (1, True)
    pulse.beat()
    assert CliRunner().invoke(app, ["health"]).exit_code == 0
    pulse.end()
    assert CliRunner().invoke(app, ["health"]).exit_code == 1


def test_a_beat_that_fails_disturbs_nobody(tmp_path: Path) -> None:
    Pulse(tmp_path / "no such folder" / "worker.alive").beat()
