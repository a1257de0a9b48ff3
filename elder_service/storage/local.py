"""Storage in a folder of this machine, or of a file system that API and workers share."""

from __future__ import annotations

import errno
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
        partial = target.with_name(target.name + ".part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _restored(source, partial):
                _bring(source, partial)
                sync(partial)
                if (found := file_sha256(partial)) != sha256:
                    raise StorageFailed(f"Could not store {key}: its sha256 is {found} there, instead of {sha256}.")
                partial.replace(target)
            source.unlink(missing_ok=True)
            sync(target.parent)
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


def _bring(source: Path, partial: Path) -> None:
    """Rename where that can be done, which costs no space; else copy, and leave the source for another try."""
    try:
        source.replace(partial)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, partial)


@contextmanager
def _restored(source: Path, partial: Path) -> Iterator[None]:
    """Whatever fails within, `source` is there afterwards and `partial` is not."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # whatever is left of it is swept with the attempt
            partial.unlink() if source.exists() else partial.replace(source)
        raise
