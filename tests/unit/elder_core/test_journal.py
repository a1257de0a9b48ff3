"""Pages of a journal: whole or not at all, this run's or none, and never a reason to fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from elder_core.errors import Cancelled
from elder_core.journal import _PART, Entry, Folder, Journal
from elder_core.monitor import Monitor
from elder_core.spec import Stage

ENTRY = Entry({"step": 3, "score": float("inf"), "sets": [[1, 2], [3]]}, {"weights": torch.arange(6.0).view(2, 3)})


def journal(folder: Path, identity: str = "a", **settings: object) -> Journal:
    begun = Journal(Folder(folder), **settings)  # type: ignore[arg-type]
    begun.begin(identity)
    return begun


def test_a_page_is_found_again_as_it_was(tmp_path: Path) -> None:
    journal(tmp_path / "new").keep("page", ENTRY)

    found = journal(tmp_path / "new").recall("page")

    assert found is not None
    assert found.facts == ENTRY.facts
    assert torch.equal(found.tensors["weights"], ENTRY.tensors["weights"])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page"]


def test_another_runs_page_is_as_if_not_there(tmp_path: Path) -> None:
    journal(tmp_path).keep("page", ENTRY)

    assert journal(tmp_path, "b").recall("page") is None
    assert journal(tmp_path).recall("another") is None


@pytest.mark.parametrize("content", [b"", b"no page", None])
def test_a_damaged_page_is_as_if_not_there(tmp_path: Path, content: bytes | None) -> None:
    journal(tmp_path).keep("page", ENTRY)
    page = tmp_path / "page"
    page.write_bytes(page.read_bytes()[:-1] if content is None else content)

    assert journal(tmp_path).recall("page") is None


def test_a_page_that_fails_half_way_leaves_the_earlier_one(tmp_path: Path) -> None:
    journal(tmp_path).keep("page", ENTRY)

    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Folder(tmp_path).write("page", half)

    assert journal(tmp_path).recall("page") is not None
    assert [file.name for file in tmp_path.iterdir()] == ["page"]


def test_what_a_killed_run_left_goes_with_the_next_page(tmp_path: Path) -> None:
    (tmp_path / f"page123{_PART}").write_bytes(b"half")
    journal(tmp_path).keep("other", ENTRY)
    assert [file.name for file in tmp_path.iterdir()] == ["other"]


def test_what_cannot_be_kept_is_logged_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way of the folder")

    journal(tmp_path / "file").keep("page", ENTRY)

    assert "the page page of the journal is not kept" in caplog.text


def test_nothing_is_kept_before_the_run_is_known_or_without_a_place(tmp_path: Path) -> None:
    for unopened in (Journal(Folder(tmp_path), seconds=0), Journal()):
        unopened.keep("page", ENTRY)
        assert not unopened.due()
        assert unopened.recall("page") is None
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_due_after_a_time_and_more_rarely_where_writing_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("elder_core.journal.time.monotonic", lambda: now)

    class Slow(Folder):
        def write(self, name: str, write: Callable[[Path], None]) -> None:
            nonlocal now
            super().write(name, write)
            now += 5

    slow = Journal(Slow(tmp_path), seconds=60)
    slow.begin("a")
    dues = []
    for wait in (59, 1):
        now += wait
        dues.append(slow.due())
    slow.keep("page", ENTRY)
    for wait in (60, 139, 1):
        now += wait
        dues.append(slow.due())

    assert dues == [False, True, False, False, True]


def test_a_run_that_is_about_to_be_ended_writes_once_more(tmp_path: Path) -> None:
    monitor = Monitor(cancelled=lambda: True, journal=journal(tmp_path, stopping=lambda: True))
    page = monitor.page("part")

    page.offer(lambda: ENTRY)
    with pytest.raises(Cancelled):
        monitor.step(1, 2)

    assert Monitor(journal=journal(tmp_path)).page("part").recalled is not None


def test_the_same_run_finds_the_same_pages_and_what_its_monitor_knew(tmp_path: Path) -> None:
    first = Monitor(journal=journal(tmp_path))
    first.warn("careful")
    first.stage_seconds[Stage.SELECTING] = 100.0
    with first.entered(Stage.SELECTING):
        assert first.page("scores").recalled is None
        first.page("scores").keep(ENTRY)

    second = Monitor(journal=journal(tmp_path))
    with second.entered(Stage.SELECTING):
        assert second.page("scores").recalled is None
        assert second.page("scores").recalled is not None
        assert second.page("others").recalled is None
    with second.entered(Stage.REGULARIZING):
        second.page("scores")
        assert second.page("scores").recalled is None

    assert second.warnings == ["careful"]
    assert second.resumptions == 1
    assert 100 <= second.stage_seconds[Stage.SELECTING] < 110
