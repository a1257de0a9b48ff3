"""The outline of a hub model: what inspection reads of a checkpoint, without its weights. Imports no torch."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from threading import Lock

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import DisabledRepoError, HfHubHTTPError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, but not re-exported

from elder_core.errors import HubUnreachable
from elder_core.hub import SHARD_PATTERNS, listed, translated, unreachable
from elder_core.inspection import CONFIG_FILE, MODEL, inspect_config
from elder_core.weight_files import INDEX_FILE, MAX_JSON_BYTES, SINGLE_FILE, read_json_object, weight_files

# Of the JSON in all files of a model. 10^12 numbers in 150 files, 384 experts a layer, take 16 MB and 550,000 parts.
MOST_BYTES = 20_000_000
MOST_PARTS = 750_000  # objects, lists and keys: what takes time, in which no other thread runs (see ADR 11)
FIRST_BYTES = 100_000  # of a weight file: holds most headers
AT_ONCE = 8  # weight files whose headers are read at the same time
EMPTY = 416  # status of an answer: of an empty file there is no part to give
PART = 206  # and of one that gives the part that was asked for
NOT_SHOWN = frozenset({401, 403})
SIZE = re.compile(r"[0-9]{1,15}")


def lay_outline(model_id: str, revision: str | None, folder: Path, seconds: float) -> None:
    """Lay into the empty `folder` what `inspect_checkpoint` reads of a hub model.

    These are the config, the index, and instead of each weight file one that is as long and has its header, with zeros
    for the numbers, which take no disk. The hub's cache is left alone. What `hub.fetch` refuses before it downloads
    weights is refused, with the same errors.

    Raises:
        ModelNotFound: no such model or revision, or no access to it.
        HubUnreachable: the hub does not answer, or not within `seconds`; it shows nothing to us, who have no token; or
            there is more JSON than is looked at.
        InvalidCheckpoint, PickledWeights, QuantizedCheckpoint, UnsupportedArchitecture: see each.
    """
    deadline = time.monotonic() + seconds
    with translated(model_id, revision), _for_want_of_a_token(model_id):
        commit, names = listed(HfApi(), model_id, revision, seconds)
        reader = _Reader(model_id, commit, folder, deadline, _Allowance(model_id))
        reader.copy(CONFIG_FILE)
        inspect_config(read_json_object(folder / CONFIG_FILE))  # a model that is refused is asked no more
        for name in names:
            if any(fnmatch(name, pattern) for pattern in (SINGLE_FILE, *SHARD_PATTERNS)):
                (folder / name).touch()
        if SINGLE_FILE not in names:
            reader.copy(INDEX_FILE)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(reader.copy_header, [file.name for file in weight_files(folder)]))
        reader.seconds_left()  # nobody waits any more for what would be made of it


@contextmanager
def _for_want_of_a_token(model_id: str) -> Iterator[None]:
    """Refuse nothing that a worker with a token may be shown.

    The hub answers with 401 to one without, of private and gated models as of those that are not there.
    """
    try:
        yield
    except HfHubHTTPError as error:
        hidden = error.response.status_code in NOT_SHOWN and not isinstance(error, DisabledRepoError)
        if not hidden or "authorization" in build_hf_headers():
            raise
        raise HubUnreachable(
            f"The hub does not show {model_id} without a token: set HF_TOKEN for the API, too, or check the name.",
            loc=MODEL,
        ) from error


class _Allowance:
    """What is left of the JSON that one look takes, for the threads that read it."""

    def __init__(self, model_id: str) -> None:
        self.bytes = MOST_BYTES
        self._parts = MOST_PARTS
        self._model_id = model_id
        self._lock = Lock()

    def take_bytes(self, count: int) -> None:
        with self._lock:
            self.bytes -= count
            self._check(self.bytes)

    def take_parts(self, content: bytearray) -> None:
        with self._lock:
            self._parts -= sum(content.count(sign) for sign in b"{[:")
            self._check(self._parts)

    def _check(self, left: int) -> None:
        if left < 0:
            raise HubUnreachable(
                f"The config, index and headers of {self._model_id} are too large to be looked at here."
            )


@dataclass(frozen=True)
class _Reader:
    """Copies files of one commit into `folder`, until `deadline` by the monotonic clock, as far as `allowed`."""

    model_id: str
    commit: str
    folder: Path
    deadline: float
    allowed: _Allowance

    def copy(self, name: str) -> None:
        """A JSON file."""
        content, _ = self._beginning(name, self.allowed.bytes + 1)
        self.allowed.take_bytes(len(content))
        self.allowed.take_parts(content)
        (self.folder / name).write_bytes(content)

    def copy_header(self, name: str) -> None:
        """A weight file without its numbers."""
        content, size = self._beginning(name, FIRST_BYTES)
        if size is None:
            raise unreachable(self.model_id, f"it does not say how large {name} is")
        end = 8 + int.from_bytes(content[:8], "little")
        if end <= min(size, 8 + MAX_JSON_BYTES):
            self.allowed.take_bytes(end)
            if len(content) < end:
                content, _ = self._beginning(name, end)
        del content[end:]
        self.allowed.take_parts(content)
        with (self.folder / name).open("wb") as file:
            file.write(content)
            file.truncate(size)

    def _beginning(self, name: str, count: int) -> tuple[bytearray, int | None]:
        """The first `count` bytes of a file, or all, and how many there are, if that is known."""
        url = hf_hub_url(self.model_id, name, revision=self.commit)
        asked = {**build_hf_headers(), "range": f"bytes=0-{count - 1}", "accept-encoding": "identity"}
        content = bytearray()
        with get_session().stream("GET", url, headers=asked, timeout=self.seconds_left()) as response:
            if response.status_code == EMPTY:
                return content, 0
            hf_raise_for_status(response)
            for part in response.iter_bytes():
                content += part
                self.seconds_left()
                if len(content) >= count:  # a mirror of the hub may know nothing of ranges, and send on and on
                    break
            size = _told_size(response) or (len(content) if len(content) < count else None)
        del content[count:]
        return content, size

    def seconds_left(self) -> float:
        """Raises HubUnreachable where there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise unreachable(self.model_id, "it takes too long")
        return left


def _told_size(response: httpx2.Response) -> int | None:
    """How many bytes the file has by what its answer says; it need not say anything."""
    if response.status_code == PART:
        told = response.headers.get("content-range", "").rpartition("/")[2]
    else:
        told = response.headers.get("content-length", "")
    return int(told) if SIZE.fullmatch(told) else None
