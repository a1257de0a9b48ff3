"""A look at a hub model never stands in the way of others."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from elder_core.errors import ModelNotFound
from elder_core.inspection import Sources, inspect_checkpoint
from elder_core.spec import ModelRef
from elder_service.jobs import hub_look
from elder_service.jobs.hub_look import HubLook
from tests.fake_hub import MODEL, FakeHub, serving


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving(Sources().builtin_root / "manuals-16l") as server:
        yield server


def seen(look: HubLook, model: str = MODEL) -> bool:
    with look.outline(ModelRef(id=model)) as folder:
        return folder is not None and inspect_checkpoint(folder).layers == 16


def test_an_outline_is_gone_afterwards(hub: FakeHub) -> None:
    with HubLook(60).outline(ModelRef(id=MODEL)) as folder:
        assert folder is not None
        assert folder.is_dir()
    assert not folder.exists()


def test_nothing_is_asked_where_it_is_turned_off(hub: FakeHub) -> None:
    assert not seen(HubLook(0))
    assert hub.asked == []


def test_only_so_many_looks_at_once(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_look, "MOST_AT_ONCE", 1)
    look = HubLook(60)
    hub.answering.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(seen, look)
        while not hub.asked:
            time.sleep(0.01)
        assert not seen(look)
        hub.answering.set()
        assert first.result()
    assert "1 others are being looked at" in caplog.text
    assert seen(look)


def test_a_place_is_given_back_after_a_refusal(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_look, "MOST_AT_ONCE", 1)
    look = HubLook(60)
    for _ in range(2):
        with pytest.raises(ModelNotFound):
            seen(look, "other/model")
    assert seen(look)


def test_without_a_place_for_the_outline_the_job_is_taken(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nothing"))
    with caplog.at_level(logging.WARNING):
        assert not seen(HubLook(60))
    assert "team/model is queued without a look at it" in caplog.text
