"""Storage in a folder of this machine, or of a file system that API and workers share."""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from elder_core.disk import file_sha256, sync
from elder_service.errors import StorageFailed


class LocalStorage:
    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, source: Path, sha256: str) -> None:
        target = self._resolve(key)
        # Its own: an attempt that does not know yet that it lost its job writes the same page of the journal.
        partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        try:
            _make_folder(target.parent)
            with _restored(source, partial, target):
                _bring(source, partial)
                sync(partial)
                if (found := file_sha256(partial)) != sha256:
                    raise StorageFailed(f"Could not store {key}: its sha256 is {found} there, instead of {sha256}.")
                partial.replace(target)
                sync(target.parent)
            source.unlink(missing_ok=True)
        except OSError as error:
            raise StorageFailed(f"Could not store {key}: {error.strerror or error}.") from error

    def path(self, key: str) -> Path:
        target = self._resolve(key)
        if not target.is_file():
            raise StorageFailed(f"The storage has lost {key}.")
        return target

    def read(self, key: str) -> bytes:
        try:
            return self.path(key).read_bytes()
        except OSError as error:
            raise StorageFailed(f"Could not read {key}: {error.strerror or error}.") from error

    def delete_prefix(self, prefix: str) -> None:
        shutil.rmtree(self._resolve(prefix), ignore_errors=True)

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        for folder in folders_in(self._resolve(prefix)):
            yield f"{prefix}/{folder.name}"

    def _resolve(self, key: str) -> Path:
        parts = PurePosixPath(key).parts
        if not parts or key.startswith("/") or ".." in parts:
            raise StorageFailed(f"{key!r} is no storage key.")
        return self._root.joinpath(*parts)


def folders_in(folder: Path) -> list[Path]:
    """The folders in `folder`, sorted; none if it is not there, or goes meanwhile: others delete in it too."""
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def _make_folder(folder: Path) -> None:
    """With the folders that it lies in, each of which the disk then holds by name."""
    missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync(made.parent)


def _bring(source: Path, partial: Path) -> None:
    """Rename where that can be done, which costs no space; else copy, and leave the source for another try."""
    try:
        source.replace(partial)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, partial)


@contextmanager
def _restored(source: Path, partial: Path, target: Path) -> Iterator[None]:
    """Whatever fails within, `source` is there afterwards and `partial` is not."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # whatever is left of it is swept with the attempt
            if source.exists():
                partial.unlink(missing_ok=True)
            else:
                (partial if partial.exists() else target).replace(source)
        raise
