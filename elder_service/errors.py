"""Errors of the service, beside those of elder_core.

ElderError
├── ServiceError
│   ├── InvalidSettings          invalid_settings
│   ├── SchemaMismatch           schema_mismatch
│   ├── DatabaseUnreachable      database_unreachable
│   ├── NoFreeGpu                no_free_gpu
│   ├── JobNotFound              job_not_found
│   ├── ReportNotReady           report_not_ready
│   ├── ArtifactNotFound         artifact_not_found
│   ├── LinkInvalid              link_invalid
│   ├── LinkExpired              link_expired
│   ├── IdempotencyMismatch      idempotency_mismatch
│   ├── InvalidCursor            invalid_cursor
│   └── StorageFailed            storage_failed (retryable)
└── RunnerError                  why an attempt ended without a result
    ├── UnreadableSpec           unreadable_spec
    ├── StartFailed              start_failed (retryable)
    ├── RunnerDied               runner_died (retryable)
    ├── DiskFull                 disk_full (retryable)
    ├── WorkerLost               worker_lost (retryable)
    ├── RuntimeExceeded          runtime_exceeded
    ├── ResultNotFinite          result_not_finite
    └── InternalError            internal_error
"""

from __future__ import annotations

from elder_core.errors import ElderError


class ServiceError(ElderError):
    """Raised by the API and what stands behind it."""


class InvalidSettings(ServiceError):
    """A setting is missing or contradicts another."""

    code = "invalid_settings"


class SchemaMismatch(ServiceError):
    """The database is at another migration than this version of the service."""

    code = "schema_mismatch"


class DatabaseUnreachable(ServiceError):
    """The database does not answer a process that starts."""

    code = "database_unreachable"


class NoFreeGpu(ServiceError):
    """The GPU that a worker is to use is not there, or another worker's."""

    code = "no_free_gpu"


class JobNotFound(ServiceError):
    """There is no job of that id."""

    code = "job_not_found"


class ReportNotReady(ServiceError):
    """The job has no report: it has not succeeded, or not yet."""

    code = "report_not_ready"


class ArtifactNotFound(ServiceError):
    """The job has no artefact of that name."""

    code = "artifact_not_found"


class LinkInvalid(ServiceError):
    """The signature of a download link does not fit."""

    code = "link_invalid"


class LinkExpired(ServiceError):
    """A download link is past its time."""

    code = "link_expired"


class IdempotencyMismatch(ServiceError):
    """The Idempotency-Key was used with another body."""

    code = "idempotency_mismatch"


class InvalidCursor(ServiceError):
    """A list cursor names no job."""

    code = "invalid_cursor"


class StorageFailed(ServiceError):
    """The artefact storage failed or returned something else than was written."""

    code = "storage_failed"
    retryable = True


class RunnerError(ElderError):
    """An attempt ended without a result."""


class UnreadableSpec(RunnerError):
    """The job's specification, as it is stored, means nothing to this version of the service; it may to a newer."""

    code = "unreadable_spec"
    retryable = True


class StartFailed(RunnerError):
    """The worker could not start a process for the job."""

    code = "start_failed"
    retryable = True


class RunnerDied(RunnerError):
    """The job's process ended by a signal or an exit code of its own."""

    code = "runner_died"
    retryable = True


class DiskFull(RunnerError):
    """There is no space left on the worker's disk. Another worker, or the same one later, may have some."""

    code = "disk_full"
    retryable = True


class WorkerLost(RunnerError):
    """The worker stopped renewing its lease."""

    code = "worker_lost"
    retryable = True


class RuntimeExceeded(RunnerError):
    """The attempt ran longer than max_runtime_seconds."""

    code = "runtime_exceeded"


class ResultNotFinite(RunnerError):
    """A figure of the result is NaN or infinite."""

    code = "result_not_finite"


class InternalError(RunnerError):
    """A fault in the service itself."""

    code = "internal_error"
