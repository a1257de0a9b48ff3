"""Where the files of finished jobs live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

JOURNAL = "journal"


@dataclass(frozen=True)
class StoredFile:
    """A file in storage. `name` is its path for people, `key` its place in storage."""

    name: str
    kind: Literal["model", "report"]
    key: str
    size_bytes: int
    sha256: str


class Storage(Protocol):
    def put(self, key: str, source: Path, sha256: str) -> None:
        """Move the file `source`, whose digest is `sha256`, to `key`: whole, or not at all and `source` stays.

        Raises:
            StorageFailed: it could not be written, or what was read back is not what was to be written.
        """

    def path(self, key: str) -> Path:
        """A local path of `key`.

        Raises:
            StorageFailed: there is nothing at `key`.
        """

    def read(self, key: str) -> bytes:
        """The content of a small file, such as a report."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete everything whose key starts with the folder `prefix`; nothing there is no error."""

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        """Keys of the folders directly below the folder `prefix`."""


def attempt_prefix(job_id: str, attempt: int) -> str:
    """Folder of one attempt: files of an attempt that lost its job are never in the way of another's."""
    return f"jobs/{job_id}/attempt-{attempt}"


def folder_of(key: str) -> str:
    """The attempt's folder, or the journal's, that `key` lies in."""
    return "/".join(key.split("/")[:3])


def journal_prefix(job_id: str) -> str:
    """Folder of what the attempts of a job found so far, for those that come after them; it goes when the job ends."""
    return f"jobs/{job_id}/{JOURNAL}"


def journal_of(prefix: str) -> str | None:
    """Job whose journal's folder `prefix` is; None if it is no journal's."""
    match prefix.split("/"):
        case ["jobs", job_id, name] if name == JOURNAL:
            return job_id
    return None


def attempt_of(prefix: str) -> tuple[str, int] | None:
    """Job and attempt whose folder `prefix` is; None if it is no attempt's folder."""
    match prefix.split("/"):
        case ["jobs", job_id, name] if name.startswith("attempt-") and name.removeprefix("attempt-").isdecimal():
            return job_id, int(name.removeprefix("attempt-"))
    return None
