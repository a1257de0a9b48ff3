"""A look at a hub model never stands in the way of others."""

from __future__ import annotations

import logging
import threading
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


def layers(folder: Path) -> int:
    return inspect_checkpoint(folder).layers


def seen(look: HubLook, model: str = MODEL) -> bool:
    return look.judged(ModelRef(id=model), layers) == 16


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where outlines are laid."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def wait_for_lookers() -> None:
    for thread in threading.enumerate():
        if thread.name == "look at the hub":
            thread.join(60)
            assert not thread.is_alive()


def test_an_outline_is_gone_afterwards(hub: FakeHub, scratch: Path) -> None:
    def judge(folder: Path) -> Path:
        assert folder.parent == scratch
        assert (folder / "config.json").is_file()
        return folder

    assert HubLook(60).judged(ModelRef(id=MODEL), judge) is not None
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("slow", ["hub", "judge"])
def test_a_late_look_leaves_nothing(
    hub: FakeHub, scratch: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    monkeypatch.setattr(hub_look, "MOST_AT_ONCE", 1)
    look = HubLook(1)
    judging, go_on = threading.Event(), threading.Event()

    def judge(folder: Path) -> int:
        judging.set()
        assert go_on.wait(60)
        (folder / "more").touch()
        return layers(folder)

    if slow == "hub":
        hub.answering.clear()
    assert look.judged(ModelRef(id=MODEL), judge) is None
    assert "team/model is queued without a look at it" in caplog.text
    if slow == "judge":
        assert len(list(scratch.iterdir())) == 1
        assert not seen(look)  # it holds its place as long as it goes on
        assert "1 others are being looked at" in caplog.text
    hub.answering.set()
    go_on.set()
    wait_for_lookers()
    assert judging.is_set() == (slow == "judge")
    assert list(scratch.iterdir()) == []
    monkeypatch.setattr(look, "_seconds", 60)
    assert seen(look)


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
