"""The key of download links that the embedded mode makes for itself."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from elder_service.secret import stored_secret
from elder_service.settings import Settings

RACE = """
import sys
from pathlib import Path
from elder_service.secret import stored_secret
print("ready", flush=True)
sys.stdin.read()  # all go on at once
print(stored_secret(Path(sys.argv[1])).get_secret_value())
"""


def test_each_data_dir_has_a_secret_of_its_own_that_stays(tmp_path: Path) -> None:
    keys = [Settings(data_dir=tmp_path / name).signing_key.get_secret_value() for name in ("a", "b", "a")]
    assert keys[0] == keys[2] != keys[1]
    assert all(len(bytes.fromhex(key)) == 32 for key in keys)


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    stored_secret(tmp_path / "secret")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_key_that_is_set_is_used_and_none_is_stored(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path, secret_key="k" * 32).signing_key.get_secret_value() == "k" * 32
    assert list(tmp_path.iterdir()) == []


def test_an_empty_key_signs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELDER_SECRET_KEY", "")
    assert len(Settings(data_dir=tmp_path).signing_key) == 64


@pytest.mark.parametrize("left", ["", "0123abcd"])
def test_what_a_crash_left_unfinished_is_replaced(tmp_path: Path, left: str) -> None:
    (tmp_path / "secret").write_text(left)
    made = stored_secret(tmp_path / "secret").get_secret_value()
    assert len(made) == 64
    assert stored_secret(tmp_path / "secret").get_secret_value() == made


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path / "data" / "secret")]
    started = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    found = set()
    for process in started:
        assert process.stdout is not None
        found.add(process.stdout.read())
        process.stdout.close()
        assert process.wait(30) == 0
    assert len(found) == 1
