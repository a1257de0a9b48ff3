"""Signed links to artefacts that work without credentials until they expire."""

from __future__ import annotations

import hashlib
import hmac
import time
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from pydantic import SecretStr

from elder_service.errors import LinkExpired, LinkInvalid


class LinkSigner:
    def __init__(self, secret: SecretStr, life_seconds: int) -> None:
        self._secret = secret
        self._life_seconds = life_seconds

    def sign(self, base_url: str, job_id: str, name: str) -> tuple[str, datetime]:
        """The link to one artefact, and when it expires."""
        expires = int(time.time()) + self._life_seconds
        query = urlencode({"expires": expires, "signature": self._signature(job_id, name, expires)})
        url = f"{base_url}/v1/jobs/{job_id}/artifacts/{quote(name)}?{query}"
        return url, datetime.fromtimestamp(expires, UTC)

    def check(self, job_id: str, name: str, expires: int, signature: str) -> None:
        """Raise LinkInvalid or LinkExpired unless the link was made here and still holds."""
        if not hmac.compare_digest(signature.encode(), self._signature(job_id, name, expires).encode()):
            raise LinkInvalid("The signature of this link does not fit; take a new link from the job's artifacts.")
        if expires < time.time():
            raise LinkExpired("This link has expired; take a new link from the job's artifacts.")

    def _signature(self, job_id: str, name: str, expires: int) -> str:
        message = f"download\n{job_id}\n{name}\n{expires}".encode()
        return hmac.new(self._secret.get_secret_value().encode(), message, hashlib.sha256).hexdigest()
