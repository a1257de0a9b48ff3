"""What the API answers, as frozen models.

A newer server may add fields, states and events: unknown fields are kept (`model_extra`, and in `model_dump`), an
unknown state or event is a plain string.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class EventType(StrEnum):
    CREATED = "job.created"
    STARTED = "job.started"
    STAGE = "job.stage"
    PROGRESS = "job.progress"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLING = "job.cancelling"
    CANCELLED = "job.cancelled"
    EXPIRED = "job.expired"
    REQUEUED = "job.requeued"


ENDED = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})
LAST_EVENTS = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED, EventType.EXPIRED})

# the enum where the value is known, the string where a newer server says something else
AnyStatus = Annotated[Status | str, Field(union_mode="left_to_right")]
AnyEventType = Annotated[EventType | str, Field(union_mode="left_to_right")]


class StageTimes(Model):
    stage: str
    started_at: datetime
    finished_at: datetime | None = None


class JobProgress(Model):
    """`fraction` is the share of the whole job that is done, between 0 and 1."""

    stage: str
    step: int
    total: int
    fraction: float
    metrics: dict[str, float] = {}
    updated_at: datetime


class JobError(Model):
    """Why a job failed. `details` may hold `exit_code`, `signal` and `log_tail` of a dead process."""

    code: str
    message: str
    stage: str | None = None
    retryable: bool = False
    details: dict[str, Any] = {}


class JobResult(Model):
    """The figures of the report that people ask for first."""

    removed_layers: tuple[int, ...]
    layers_before: int
    layers_after: int
    parameters_before: int
    parameters_after: int
    perplexity_before: float
    perplexity_after: float
    decode_speedup: float | None = None


class JobUrls(Model):
    self: str
    page: str
    cancel: str
    events: str
    report: str | None = None
    report_html: str | None = None
    artifacts: str


class Job(Model):
    id: str
    status: AnyStatus
    cancel_requested: bool = False
    stage: str | None = None
    stage_history: tuple[StageTimes, ...] = ()
    progress: JobProgress | None = None
    attempt: int
    max_attempts: int
    owner: str = "default"
    needs: dict[str, Any] = {}
    queue_position: int | None = Field(default=None, description="1 is next; null unless a worker can hold it.")
    estimated_start_at: datetime | None = None
    waiting_for: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    queued_seconds: float
    running_seconds: float | None = None
    priority: str = "normal"
    max_runtime_seconds: int | None = None
    max_queue_seconds: int | None = None
    spec: dict[str, Any]
    metadata: dict[str, str] = {}
    result: JobResult | None = None
    error: JobError | None = None
    urls: JobUrls

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class JobList(Model):
    data: tuple[Job, ...]
    has_more: bool
    last_id: str | None = None


class JobEvent(Model):
    """`seq` counts from 1 without gaps within a job."""

    seq: int
    type: AnyEventType
    at: datetime
    data: dict[str, Any] = {}

    @property
    def last(self) -> bool:
        """Whether the job ended with this event."""
        return self.type in LAST_EVENTS


class JobEventList(Model):
    data: tuple[JobEvent, ...]
    has_more: bool


class Artifact(Model):
    """A file of the result. `name` is its path below the download folder; `download_url` expires."""

    id: str
    name: str
    kind: str
    size_bytes: int
    sha256: str
    download_url: str
    expires_at: datetime


class ArtifactList(Model):
    data: tuple[Artifact, ...]


class MethodInfo(Model):
    """A pruning method; `parameters` is the JSON schema of its parameters."""

    name: str
    title: str
    summary: str
    source: str
    parameters: dict[str, Any]


class MethodList(Model):
    data: tuple[MethodInfo, ...]


class Measurement(Model):
    """One model measured. Speed and memory are null where they were not asked for."""

    layers: int
    parameters: int
    bytes_on_disk: int
    perplexity: float
    bits_per_byte: float
    prefill_tokens_per_second: float | None = None
    prefill_latency_seconds: float | None = None
    decode_tokens_per_second: float | None = None
    decode_latency_seconds: float | None = None
    peak_memory_bytes: int | None = None


class Evaluation(Model):
    """Before and after, on text that calibration never saw. `ratios` holds after / before by field name."""

    source: str
    tokens: int
    before: Measurement
    after: Measurement
    ratios: dict[str, float]


class LayerReport(Model):
    """One layer of the unpruned model. `weight`: what selection measured; small means removable."""

    index: int
    weight: float | None = None
    removed: bool
    new_index: int | None = None


class Expected(Model):
    """What a job with a target expected of the layers that it chose, before any training."""

    layers: int
    perplexity_before: float
    perplexity_after: float | None = None
    decode_speedup: float | None = None
    bytes_on_disk: int


class Generation(Model):
    """The same prompt continued by both models."""

    prompt: str
    before: str
    after: str


class Report(Model):
    """What a run measured; the fields not typed here are in `model_extra`."""

    schema_version: int
    created_at: datetime
    removed_layers: tuple[int, ...]
    layers: tuple[LayerReport, ...]
    expected: Expected | None = None
    evaluation: Evaluation
    generations: tuple[Generation, ...] = ()
    warnings: tuple[str, ...] = ()


class ProblemItem(Model):
    """One fault of a refused request; `loc` is the path of the field as the caller wrote it."""

    loc: tuple[str | int, ...]
    code: str
    message: str


class Problem(Model):
    """The body of every error (RFC 9457, `application/problem+json`)."""

    status: int
    detail: str
    code: str
    request_id: str | None = None
    errors: tuple[ProblemItem, ...] = ()
