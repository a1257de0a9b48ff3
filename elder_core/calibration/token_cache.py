"""Token streams on disk, by what they were made from: tokenising a large text takes minutes.

A file is one safetensors file of `tokens` `[n]`, 32-bit, and the SHA-256 of their bytes. Its name is the SHA-256 of the
documents, of the tokenizer and of all else that decides what comes out, so that it is never out of date.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from elder_core.cache_folder import UNFINISHED_PREFIX, remove_unused
from elder_core.calibration.windows import token_stream

CUTTING_VERSION = 1  # of token_stream: one more whenever it makes other tokens of the same text
LIBRARIES = ("tokenizers", "transformers")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenCache:
    """Token streams kept in `folder`; None keeps none. A folder that cannot be used costs time, and no run."""

    folder: Path | None

    def stream(
        self, documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokenizer_hash: str, *, field: str
    ) -> Tensor:
        """Token ids `[tokens]` as `token_stream` makes them; `tokenizer_hash` stands for the tokenizer's files.

        Raises:
            TextEmpty: no document holds a token.
        """
        if self.folder is None:
            return token_stream(documents, tokenizer, field=field)
        path = self.folder / f"{_key(documents, tokenizer_hash)}.safetensors"
        if (known := _read(path)) is not None:
            return known
        made = token_stream(documents, tokenizer, field=field)
        _write(path, made)
        return made


def _key(documents: Sequence[str], tokenizer_hash: str) -> str:
    versions = " ".join(f"{name} {version(name)}" for name in LIBRARIES)
    digest = hashlib.sha256(f"{CUTTING_VERSION}\n{versions}\n{tokenizer_hash}\n".encode())
    digest.update(documents_sha256(documents))
    return digest.hexdigest()


def documents_sha256(documents: Sequence[str]) -> bytes:
    """SHA-256 of the documents, each with its length, or "ab", "c" would be "a", "bc"."""
    digest = hashlib.sha256()
    for document in documents:
        text = document.encode()
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.digest()


def _read(path: Path) -> Tensor | None:
    """What the file holds, and a mark that it was used; None if it is not there, or not as it was written."""
    try:
        found = load(path.read_bytes())
        tokens = found["tokens"]
        if found["sha256"].tobytes() == _digest(tokens):
            os.utime(path)
            return torch.from_numpy(tokens.astype(np.int64))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as error:
        _log.warning("%s cannot be read, and is made again: %s", path, error)
        return None
    _log.warning("%s is damaged, and is made again", path)
    return None


def _write(path: Path, stream: Tensor) -> None:
    """Write the file whole or not at all, and let those go that nobody uses."""
    tokens = stream.numpy().astype(np.int32)
    content = save({"tokens": tokens, "sha256": np.frombuffer(_digest(tokens), dtype=np.uint8)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=UNFINISHED_PREFIX, delete=False) as file:
            unfinished = Path(file.name)
            try:
                file.write(content)
                file.flush()
                unfinished.replace(path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
        remove_unused(path.parent)
    except OSError as error:
        _log.warning("tokens are not kept for the next time: %s", error)


def _digest(tokens: np.ndarray) -> bytes:
    return hashlib.sha256(tokens.tobytes()).digest()
