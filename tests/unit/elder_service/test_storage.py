from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from elder_core.disk import file_sha256
from elder_service.errors import StorageFailed
from elder_service.storage import local, publish
from elder_service.storage.local import LocalStorage
from tests.faults.faulty_storage import Fault, FaultyStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


def put(storage: LocalStorage, key: str, source: Path, content: bytes = b"abc") -> None:
    source.write_bytes(content)
    storage.put(key, source, file_sha256(source))


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


@pytest.fixture
def other_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage is on another file system than the source, so that nothing can be renamed into it."""
    replace = Path.replace

    def crosses(source: Path, target: Path) -> Path:
        if source.parent != target.parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", crosses)


@pytest.mark.usefixtures("other_disk")
def test_put_copies_to_another_disk(storage: LocalStorage, tmp_path: Path) -> None:
    put(storage, "jobs/a", tmp_path / "x")
    assert storage.read("jobs/a") == b"abc"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("disk", ["one", "another"])
@pytest.mark.parametrize("fails", ["sync", "file_sha256"])
def test_a_put_that_fails_leaves_the_source_and_nothing_else(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
    disk: str, fails: str,
) -> None:  # fmt: skip
    if disk == "another":
        request.getfixturevalue("other_disk")
    source = tmp_path / "x"
    source.write_bytes(b"abc")
    digest = file_sha256(source)

    def full(_path: Path) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(local, fails, full)
        with pytest.raises(StorageFailed, match="Could not store jobs/a: No space left on device"):
            storage.put("jobs/a", source, digest)
    assert source.read_bytes() == b"abc"
    assert list((tmp_path / "store" / "jobs").iterdir()) == []
    storage.put("jobs/a", source, digest)
    assert storage.read("jobs/a") == b"abc"


@pytest.mark.parametrize("disk", ["one", "another"])
def test_a_put_that_fails_at_its_very_end_can_be_made_again(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, disk: str
) -> None:
    """The file is in its place by then, but it is not known whether it would outlive a power cut."""
    if disk == "another":
        request.getfixturevalue("other_disk")
    source, target = tmp_path / "x", tmp_path / "store" / "jobs" / "a"
    source.write_bytes(b"abc")
    digest, failures = file_sha256(source), [OSError(errno.EIO, os.strerror(errno.EIO))]

    def fails_once(path: Path) -> None:
        if path == target.parent and target.exists() and failures:
            raise failures.pop()

    monkeypatch.setattr(local, "sync", fails_once)
    with pytest.raises(StorageFailed, match="Could not store jobs/a: Input/output error"):
        storage.put("jobs/a", source, digest)
    assert source.read_bytes() == b"abc"
    storage.put("jobs/a", source, digest)
    assert storage.read("jobs/a") == b"abc"
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_two_who_put_the_same_key_at_once_do_not_disturb_each_other(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the journal, by an attempt that lost its job and by the one that has it."""
    slow, quick = tmp_path / "slow", tmp_path / "quick"
    slow.write_bytes(b"abc")
    quick.write_bytes(b"abcdef")
    digests = {path: file_sha256(path) for path in (slow, quick)}

    def meanwhile(path: Path) -> str:
        if quick.exists():
            monkeypatch.setattr(local, "file_sha256", file_sha256)
            storage.put("jobs/a", quick, digests[quick])
        return file_sha256(path)

    monkeypatch.setattr(local, "file_sha256", meanwhile)
    storage.put("jobs/a", slow, digests[slow])
    assert storage.read("jobs/a") == b"abc"
    assert [path.name for path in (tmp_path / "store" / "jobs").iterdir()] == ["a"]


def test_what_is_stored_outlives_a_power_cut_by_name_too(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders that are new, each named in the one above."""
    synced: list[Path] = []
    monkeypatch.setattr(local, "sync", synced.append)
    put(storage, "jobs/a/attempt-1/x", tmp_path / "x")
    root = tmp_path / "store"
    assert synced[:4] == [tmp_path, root, root / "jobs", root / "jobs" / "a"]
    assert synced[-1] == root / "jobs" / "a" / "attempt-1"
    synced.clear()
    put(storage, "jobs/a/attempt-1/y", tmp_path / "x")
    assert len(synced) == 2  # the file and its name


def test_what_is_not_what_it_should_be_is_not_stored(storage: LocalStorage, tmp_path: Path) -> None:
    source = tmp_path / "x"
    source.write_bytes(b"abc")
    with pytest.raises(StorageFailed, match=r"its sha256 is ba7816bf.* instead of 000"):
        storage.put("jobs/a", source, "0" * 64)
    assert source.read_bytes() == b"abc"
    with pytest.raises(StorageFailed, match="has lost jobs/a"):
        storage.path("jobs/a")


@pytest.mark.parametrize("fault", Fault)
def test_a_storage_that_goes_wrong_is_tried_again_after_a_while(
    storage: LocalStorage, tmp_path: Path, fault: Fault
) -> None:
    source, waited = tmp_path / "x", []
    source.write_bytes(b"abcdef")
    faulty = FaultyStorage(storage, fault, times=len(publish.DELAYS_SECONDS))
    stored = publish.publish(faulty, "jobs/a/model/x", "model/x", "model", source, waited.append)
    assert storage.read(stored.key) == b"abcdef"
    assert stored.size_bytes == 6
    assert waited == ([] if fault is Fault.SLOW else list(publish.DELAYS_SECONDS))


def test_a_storage_that_never_comes_back_is_given_up(storage: LocalStorage, tmp_path: Path) -> None:
    source = tmp_path / "x"
    source.write_bytes(b"abcdef")
    faulty = FaultyStorage(storage, Fault.DENIES, times=99)
    with pytest.raises(StorageFailed, match="Permission denied") as caught:
        publish.publish(faulty, "jobs/a", "a", "model", source, lambda _: None)
    assert caught.value.retryable
