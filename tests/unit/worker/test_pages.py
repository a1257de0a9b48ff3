"""A journal in storage: found again by whoever comes next."""

from __future__ import annotations

from pathlib import Path

import pytest

from elder_core.journal import Entry, Journal
from elder_service.storage.local import LocalStorage
from worker.pages import StoredPages


def journal(folder: Path, scratch: str) -> Journal:
    begun = Journal(StoredPages(LocalStorage(folder / "storage"), "jobs/job_x/journal", folder / scratch))
    begun.begin("a")
    return begun


def test_another_worker_finds_the_page(tmp_path: Path) -> None:
    journal(tmp_path, "one").keep("page", Entry({"step": 3}))

    found = journal(tmp_path, "two").recall("page")

    assert found is not None
    assert found.facts == {"step": 3}
    assert [file.name for file in (tmp_path / "storage/jobs/job_x/journal").iterdir()] == ["page"]
    assert list((tmp_path / "one").iterdir()) == []


def test_a_page_that_is_not_there_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert journal(tmp_path, "one").recall("page") is None
    assert caplog.text == ""


def test_storage_that_takes_nothing_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "storage").write_text("in the way")

    journal(tmp_path, "one").keep("page", Entry())

    assert "is not kept" in caplog.text
    assert list((tmp_path / "one").iterdir()) == []
