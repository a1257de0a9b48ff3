"""The outline of a hub model: what inspection reads of a checkpoint, without its weights. Imports no torch."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, but not re-exported

from elder_core.hub import SHARD_PATTERNS, listed, translated, unreachable
from elder_core.inspection import CONFIG_FILE, inspect_config
from elder_core.weight_files import INDEX_FILE, MAX_JSON_BYTES, SINGLE_FILE, read_json_object, weight_files

FIRST_BYTES = 100_000  # of a weight file: holds most headers
AT_ONCE = 8  # weight files whose headers are read at the same time
EMPTY = 416  # status of an answer: of an empty file there is no part to give


def lay_outline(model_id: str, revision: str | None, folder: Path, seconds: float) -> None:
    """Lay into the empty `folder` what `inspect_checkpoint` reads of a hub model.

    These are the config, the index, and instead of each weight file one that is as long and has its header, with zeros
    for the numbers, which take no disk. The hub's cache is left alone. What `hub.fetch` refuses before it downloads
    weights is refused, with the same errors.

    Raises:
        ModelNotFound: no such model or revision, or no access to it.
        HubUnreachable: the hub does not answer, or not within `seconds`.
        InvalidCheckpoint, PickledWeights, QuantizedCheckpoint, UnsupportedArchitecture: see each.
    """
    deadline = time.monotonic() + seconds
    with translated(model_id, revision):
        commit, names = listed(HfApi(), model_id, revision, seconds)
        reader = _Reader(model_id, commit, folder, deadline)
        reader.copy(CONFIG_FILE)
        inspect_config(read_json_object(folder / CONFIG_FILE))  # a model that is refused is asked no more
        for name in names:
            if any(fnmatch(name, pattern) for pattern in (SINGLE_FILE, *SHARD_PATTERNS)):
                (folder / name).touch()
        if SINGLE_FILE not in names:
            reader.copy(INDEX_FILE)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(reader.copy_header, [file.name for file in weight_files(folder)]))


@dataclass(frozen=True)
class _Reader:
    """Copies files of one commit into `folder`, until `deadline` by the monotonic clock."""

    model_id: str
    commit: str
    folder: Path
    deadline: float

    def copy(self, name: str) -> None:
        """A JSON file, or enough of it to be seen to be too large."""
        content, _ = self._beginning(name, MAX_JSON_BYTES + 1)
        (self.folder / name).write_bytes(content)

    def copy_header(self, name: str) -> None:
        """A weight file without its numbers."""
        content, size = self._beginning(name, FIRST_BYTES)
        end = 8 + int.from_bytes(content[:8], "little")
        if len(content) < end <= min(size, 8 + MAX_JSON_BYTES):
            content, size = self._beginning(name, end)
        with (self.folder / name).open("wb") as file:
            file.write(content[:end])
            file.truncate(size)

    def _beginning(self, name: str, count: int) -> tuple[bytes, int]:
        """The first `count` bytes of a file, or all, and how many there are."""
        url = hf_hub_url(self.model_id, name, revision=self.commit)
        asked = {**build_hf_headers(), "range": f"bytes=0-{count - 1}", "accept-encoding": "identity"}
        content = bytearray()
        with get_session().stream("GET", url, headers=asked, timeout=self._seconds_left()) as response:
            if response.status_code == EMPTY:
                return b"", 0
            hf_raise_for_status(response)
            for part in response.iter_bytes():
                content += part
                self._seconds_left()
                if len(content) >= count:  # a mirror of the hub may know nothing of ranges, and send on and on
                    break
            return bytes(content[:count]), self._size(response)

    def _size(self, response: httpx2.Response) -> int:
        whole = response.headers.get("content-range", "").rpartition("/")[2]
        told = whole or response.headers.get("content-length", "")
        if not told.isdecimal():
            raise unreachable(self.model_id, "it does not say how large a file is")
        return int(told)

    def _seconds_left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise unreachable(self.model_id, "it takes too long")
        return left
