"""Every error that the client raises on purpose.

ElderClientError
├── InvalidServerUrl        the server's address is not an http(s) URL
├── ServerUnreachable       no answer, after retries
├── UnexpectedAnswer        an answer, but not one of this API
├── ElderApiError           the server refused; carries status, code, detail, request_id, errors
│   ├── InvalidRequest      400, 413, 415, 422
│   ├── NotAuthorised       401, 403
│   ├── NotFound            404
│   ├── Conflict            409
│   ├── TooManyRequests     429, after retries
│   └── ServerFault         5xx, after retries
├── JobUnsuccessful         the job ended without a result; carries the job
│   ├── JobFailed
│   ├── JobCancelled
│   └── JobExpired
├── WaitTimeout             the job was still going when the caller's time was up
└── DownloadError
    ├── UnsafeArtifactName  the name would leave the download folder
    ├── ChecksumMismatch    the bytes are not those that the server lists
    └── DownloadFailed      the connection broke too often; what arrived is kept for the next try
"""

from __future__ import annotations

from elder_client.types import Job, ProblemItem


class ElderClientError(Exception):
    """Base of all errors raised on purpose. `code` is stable, for scripts."""

    code = "client_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidServerUrl(ElderClientError):
    """The server's address is not an http(s) URL."""

    code = "invalid_server_url"


class ServerUnreachable(ElderClientError):
    """No answer came from `url`, after retries."""

    code = "server_unreachable"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"No answer from {url} ({reason}). Is the server running? Start one with `elder-server serve`, or name "
            "another with --server or ELDER_SERVER."
        )
        self.url = url


class UnexpectedAnswer(ElderClientError):
    """The answer is not one of this API: another service listens there, or a version that does not fit."""

    code = "unexpected_answer"


class ElderApiError(ElderClientError):
    """The server refused a request (RFC 9457).

    `status` is the HTTP status, `code` the service's stable code, `request_id` finds the request in its log, and
    `errors` names each field that is at fault.
    """

    def __init__(
        self,
        *,
        status: int,
        code: str,
        detail: str,
        request_id: str | None = None,
        errors: tuple[ProblemItem, ...] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.errors = errors

    def __str__(self) -> str:
        return f"{self.detail} [{self.code}, HTTP {self.status}]"


class InvalidRequest(ElderApiError):
    """The request itself is at fault; sending it again changes nothing."""


class NotAuthorised(ElderApiError):
    """The request needs a key that it does not have."""


class NotFound(ElderApiError):
    """There is nothing of that id, or nothing yet."""


class Conflict(ElderApiError):
    """The request contradicts the state that the server is in."""


class TooManyRequests(ElderApiError):
    """The server asked to slow down, and went on asking."""


class ServerFault(ElderApiError):
    """The server failed to answer."""


class JobUnsuccessful(ElderClientError):
    """The job ended without a result; `job` says why."""

    code = "job_unsuccessful"

    def __init__(self, job: Job) -> None:
        super().__init__(f"Job {job.id} ended as {job.status}.")
        self.job = job


class JobFailed(JobUnsuccessful):
    """The job failed; `code` and the message are those of its error."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if job.error is not None:
            self.code = job.error.code
            stage = f" while {job.error.stage}" if job.error.stage else ""
            self.message = f"Job {job.id} failed{stage}: {job.error.message}"
            self.args = (self.message,)


class JobCancelled(JobUnsuccessful):
    """Somebody cancelled the job."""

    code = "job_cancelled"


class JobExpired(JobUnsuccessful):
    """The job was not started within its `max_queue_seconds`."""

    code = "job_expired"


class WaitTimeout(ElderClientError):
    """The job was still going when the caller's time was up; it goes on. `job` is its last known state."""

    code = "wait_timeout"

    def __init__(self, job: Job, seconds: float) -> None:
        super().__init__(f"Job {job.id} is still {job.status} after {seconds:g} s; it goes on.")
        self.job = job


class DownloadError(ElderClientError):
    """An artefact is not on disk as it should be."""


class UnsafeArtifactName(DownloadError):
    """The artefact's name would lead outside the download folder; nothing was written."""

    code = "unsafe_artifact_name"


class ChecksumMismatch(DownloadError):
    """The bytes received are, twice, not those that the server lists; they were deleted."""

    code = "checksum_mismatch"


class DownloadFailed(DownloadError):
    """The connection broke too often; the next download goes on from the part that arrived."""

    code = "download_failed"
