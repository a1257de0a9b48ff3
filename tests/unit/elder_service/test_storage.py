from __future__ import annotations

from pathlib import Path

import pytest

from elder_service.errors import StorageFailed
from elder_service.storage.local import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


def put(storage: LocalStorage, key: str, source: Path, content: bytes = b"abc") -> None:
    source.write_bytes(content)
    storage.put(key, source)


def test_put_moves_the_file(storage: LocalStorage, tmp_path: Path) -> None:
    put(storage, "jobs/a/attempt-1/model/x", tmp_path / "x")
    assert storage.read("jobs/a/attempt-1/model/x") == b"abc"
    assert not (tmp_path / "x").exists()
    assert list(storage.list_prefixes("jobs/a")) == ["jobs/a/attempt-1"]


def test_delete_prefix_leaves_the_others(storage: LocalStorage, tmp_path: Path) -> None:
    for attempt in (1, 2):
        put(storage, f"jobs/a/attempt-{attempt}/x", tmp_path / "x")
    storage.delete_prefix("jobs/a/attempt-1")
    storage.delete_prefix("jobs/a/attempt-9")
    assert list(storage.list_prefixes("jobs/a")) == ["jobs/a/attempt-2"]


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../x", ""])
def test_keys_stay_inside(storage: LocalStorage, key: str) -> None:
    with pytest.raises(StorageFailed, match="no storage key"):
        storage.path(key)


def test_what_is_not_there(storage: LocalStorage) -> None:
    with pytest.raises(StorageFailed, match="has lost jobs/x"):
        storage.read("jobs/x")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(StorageFailed, match="Could not store jobs/x"):
        put(LocalStorage(tmp_path / "store"), "jobs/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"abc"
