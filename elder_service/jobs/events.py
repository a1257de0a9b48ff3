"""The kinds of events in a job's log."""

from __future__ import annotations

CREATED = "job.created"
STARTED = "job.started"
STAGE = "job.stage"
PROGRESS = "job.progress"
REQUEUED = "job.requeued"
CANCELLING = "job.cancelling"
SUCCEEDED = "job.succeeded"
FAILED = "job.failed"
CANCELLED = "job.cancelled"
EXPIRED = "job.expired"

ENDING = frozenset({SUCCEEDED, FAILED, CANCELLED, EXPIRED})
"""A job's log ends with one of these."""
