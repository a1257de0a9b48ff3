"""Artefacts to disk: resumed, verified, and never outside the folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import cast

import httpx2

from elder_client import protocol
from elder_client.errors import ChecksumMismatch, DownloadFailed, ElderApiError, UnsafeArtifactName
from elder_client.flows import Flow, Open, ReadAll, ReadChunk, call, pause
from elder_client.retry import RetryPolicy
from elder_client.types import Artifact

PART_SUFFIX = ".part"
LINK_EXPIRED = frozenset({401, 403, 410})
RETRY_STATUSES = protocol.RETRY_STATUSES | LINK_EXPIRED | {416}


@dataclass(frozen=True)
class DownloadProgress:
    """How much of one download, of all its files together, is on disk and verified or arriving."""

    name: str
    done_bytes: int
    total_bytes: int


OnProgress = Callable[[DownloadProgress], None]


def download(
    job_id: str, folder: Path, policy: RetryPolicy, *, names: Collection[str] | None, on_progress: OnProgress
) -> Flow[list[Path]]:
    """Fetch a job's artefacts, or those in `names`, into `folder`; files already there and right are kept.

    Raises:
        UnsafeArtifactName: before anything is written.
        ChecksumMismatch, DownloadFailed, ElderApiError, ServerUnreachable: the files before are whole.
    """
    listed = (yield from call(protocol.list_artifacts(job_id), policy)).data
    wanted = [artifact for artifact in listed if names is None or artifact.name in names]
    targets = [safe_target(folder, artifact.name) for artifact in wanted]
    total, before = sum(artifact.size_bytes for artifact in wanted), 0
    for artifact, target in zip(wanted, targets, strict=True):

        def report(size: int, name: str = artifact.name, before: int = before) -> None:
            on_progress(DownloadProgress(name, before + size, total))

        yield from _Fetch(job_id, artifact, target, policy, report).flow()
        before += artifact.size_bytes
    return targets


def safe_target(folder: Path, name: str) -> Path:
    """Where the artefact called `name` goes below `folder`.

    Raises:
        UnsafeArtifactName: that would be elsewhere: `..`, an absolute path, a drive, a link that leads out.
    """
    pure = PurePosixPath(name)
    unsafe = not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name
    if unsafe or PureWindowsPath(name).drive:
        raise UnsafeArtifactName(
            f"The server lists an artefact {name!r}, which would leave {folder}; nothing is written."
        )
    target = folder / pure
    if not target.resolve().is_relative_to(folder.resolve()):
        raise UnsafeArtifactName(f"{target} leads out of {folder} by a symbolic link; nothing is written.")
    return target


class _Fetch:
    """One artefact on its way to `target`, through `target` + `.part`."""

    def __init__(
        self, job_id: str, artifact: Artifact, target: Path, policy: RetryPolicy, report: Callable[[int], None]
    ) -> None:
        self.job_id = job_id
        self.artifact = artifact
        self.target = target
        self.part = target.with_name(target.name + PART_SUFFIX)
        self.policy = policy
        self.report = report

    def flow(self) -> Flow[None]:
        if self.target.is_file() and self._is_whole(self.target):
            self.report(self.artifact.size_bytes)
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # a part left from something else is found out here, and fetched anew
            yield from self._fill_part()
            if self._is_whole(self.part):
                self.part.replace(self.target)
                return
            self.part.unlink()
        raise ChecksumMismatch(
            f"{self.artifact.name} arrived twice with another content than the server lists "
            f"(sha256 {self.artifact.sha256}); it was deleted."
        )

    def _fill_part(self) -> Flow[None]:
        """Append to the part until it has its full size; a try that brought bytes does not count as failed."""
        failures = 0
        self.part.touch()
        while (size := self._part_size()) < self.artifact.size_bytes:
            problem, answer = yield from self._try_once(size)
            if self._part_size() > size:
                failures = 0
            if self._part_size() < self.artifact.size_bytes:
                failures += 1
                yield from pause(self.policy, failures, problem, answer)

    def _try_once(self, offset: int) -> Flow[tuple[Exception, httpx2.Response | None]]:
        """One request; returns what is to be raised if it was the last and did not suffice."""
        answer: httpx2.Response | None = None
        reason = "the connection closed early"
        try:
            answer = cast("httpx2.Response", (yield Open(protocol.download(self.artifact.download_url, offset=offset))))
            if not answer.is_success:
                return (yield from self._refused(answer)), answer
            yield from self._receive(answer, offset)
        except httpx2.RequestError as error:
            reason = str(error) or type(error).__name__
        received = f"{self._part_size()} of {self.artifact.size_bytes} bytes of {self.artifact.name}"
        return DownloadFailed(f"Only {received} arrived: {reason}. Run the download again to go on."), answer

    def _refused(self, answer: httpx2.Response) -> Flow[ElderApiError]:
        yield ReadAll()
        problem = protocol.error_of(answer)
        if answer.status_code not in RETRY_STATUSES:
            raise problem
        if answer.status_code in LINK_EXPIRED:
            self.artifact = yield from self._list_again()
        if answer.status_code == 416:
            self.part.write_bytes(b"")
        return problem

    def _list_again(self) -> Flow[Artifact]:
        """The same artefact with a link of full life."""
        listed = yield from call(protocol.list_artifacts(self.job_id), self.policy)
        return next((artifact for artifact in listed.data if artifact.id == self.artifact.id), self.artifact)

    def _receive(self, answer: httpx2.Response, offset: int) -> Flow[None]:
        resumed = answer.status_code == 206 and _range_start(answer) == offset
        size = offset if resumed else 0
        with self.part.open("ab" if resumed else "wb") as file:
            while (chunk := (yield ReadChunk())) is not None:
                file.write(chunk)
                size += len(chunk)
                self.report(min(size, self.artifact.size_bytes))

    def _part_size(self) -> int:
        return self.part.stat().st_size

    def _is_whole(self, path: Path) -> bool:
        return path.stat().st_size == self.artifact.size_bytes and sha256_of(path) == self.artifact.sha256.lower()


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _range_start(answer: httpx2.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
    return int(match[1]) if match else None
