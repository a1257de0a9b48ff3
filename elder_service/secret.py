"""The key that signs download links where none is given: made once, kept beside the data."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from pydantic import SecretStr

SECRET_BYTES = 32


def stored_secret(path: Path) -> SecretStr:
    """The secret in `path`, which only its owner can read; a new one if there is none yet.

    Processes that start together wait for each other, so all get the same one; what a crash left unfinished is
    replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        secret = file.read().strip()
        if len(secret) < 2 * SECRET_BYTES:
            secret = secrets.token_hex(SECRET_BYTES)
            file.seek(0)
            file.truncate()
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
    return SecretStr(secret)
