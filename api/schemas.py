"""The JSON that callers see. Times are RFC 3339 in UTC; sizes end in `_bytes`, durations in `_seconds`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.storable import check_storable
from elder_core.spec import JobSpec, Stage
from elder_service.jobs.hardware import Device
from elder_service.jobs.states import Status

# Without quotes, which a path into JSON could not hold.
METADATA_KEY = r"^[A-Za-z0-9_.:/-]{1,64}$"
MOST_METADATA = 32


class Schema(BaseModel):
    model_config = ConfigDict(from_attributes=True, protected_namespaces=())


class JobNeeds(Schema):
    """What a worker must have to be given the job; null: any."""

    model_config = ConfigDict(from_attributes=True, extra="forbid")

    device: Device | None = Field(
        default=None, description="`cuda`: only a worker with a GPU; `cpu`: only one without."
    )
    memory_bytes: int | None = Field(
        default=None,
        ge=1,
        lt=2**63,
        description="Memory of the GPU, else of the machine. Null: estimated from the model's files, as the least that "
        "its weights and their training take.",
    )


class JobCreate(JobSpec):
    """A pruning job to queue. Everything but the model and one target has a default."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": {"id": "builtin:manuals-16l"}, "ratio": 0.25},
                {"model": {"id": "builtin:manuals-16l"}, "target": {"max_perplexity_increase": 0.1}},
            ]
        },
    )

    priority: Literal["low", "normal", "high"] = Field(default="normal", description="High goes first, then age.")
    max_runtime_seconds: int | None = Field(
        default=None, ge=1, le=30 * 86_400, description="An attempt that runs longer is ended and the job fails."
    )
    max_queue_seconds: int | None = Field(
        default=None, ge=1, le=30 * 86_400, description="A job not started by then expires."
    )
    needs: JobNeeds = Field(default=JobNeeds(), description="Hardware without which the job is not to be started.")
    metadata: dict[Annotated[str, Field(pattern=METADATA_KEY)], str] = Field(
        default={},
        max_length=MOST_METADATA,
        description="Kept and returned as given. A key has up to 64 letters, digits and `_.:/-`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _check_storable(cls, value: Any) -> Any:
        return check_storable(value)


class StageTimes(Schema):
    stage: Stage
    started_at: datetime
    finished_at: datetime | None


class JobProgress(Schema):
    """`fraction` is the share of the whole job that is done, an estimate between 0 and 1."""

    stage: Stage
    step: int
    total: int
    fraction: float
    metrics: dict[str, float]
    updated_at: datetime


class JobError(Schema):
    """Why a job failed. `details` may hold `exit_code`, `signal` and `log_tail` of a dead child process."""

    code: str
    message: str
    stage: Stage | None
    retryable: bool
    details: dict[str, Any] = {}


class JobResult(Schema):
    """The figures of the report that people ask for first."""

    removed_layers: list[int]
    layers_before: int
    layers_after: int
    parameters_before: int
    parameters_after: int
    perplexity_before: float
    perplexity_after: float
    decode_speedup: float | None


class JobUrls(Schema):
    self: str
    page: str
    cancel: str
    events: str
    report: str | None
    report_html: str | None
    artifacts: str


class Job(Schema):
    object: Literal["job"] = "job"
    id: str
    status: Status
    cancel_requested: bool
    stage: Stage | None
    stage_history: list[StageTimes]
    progress: JobProgress | None
    attempt: int
    max_attempts: int
    owner: str
    needs: JobNeeds
    queue_position: int | None = Field(
        description="Place among the queued jobs that want the same workers, 1 being next; null unless queued, "
        "and while no worker that is there can hold the job."
    )
    estimated_start_at: datetime | None = Field(
        description="When a queued job may start, by how long recent jobs took and by the workers that can hold it; "
        "null where there is nothing to base that on."
    )
    waiting_for: str | None = Field(
        description="In a sentence, what keeps a queued job from starting beside the jobs before it."
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    queued_seconds: float
    running_seconds: float | None
    priority: str
    max_runtime_seconds: int | None
    max_queue_seconds: int | None
    spec: JobSpec | dict[str, Any] = Field(
        description="As it was submitted, with defaults. Where another version of the service stored what this one "
        "cannot read, it is shown as it is stored."
    )
    metadata: dict[str, str]
    result: JobResult | None
    error: JobError | None
    urls: JobUrls


class JobList(Schema):
    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool
    first_id: str | None
    last_id: str | None


class JobEvent(Schema):
    """`seq` counts from 1 without gaps within a job."""

    object: Literal["job.event"] = "job.event"
    seq: int
    type: str
    at: datetime
    data: dict[str, Any]


class JobEventList(Schema):
    object: Literal["list"] = "list"
    data: list[JobEvent]
    has_more: bool


class Artifact(Schema):
    object: Literal["artifact"] = "artifact"
    id: str
    name: str = Field(description="Path below the download folder, such as `model/config.json`.")
    kind: Literal["model", "report"]
    size_bytes: int
    sha256: str
    download_url: str
    expires_at: datetime


class ArtifactList(Schema):
    object: Literal["list"] = "list"
    data: list[Artifact]


class MethodInfo(Schema):
    object: Literal["method"] = "method"
    name: str
    title: str
    summary: str
    source: str
    parameters: dict[str, Any] = Field(description="JSON schema of the method's parameters.")


class MethodList(Schema):
    object: Literal["list"] = "list"
    data: list[MethodInfo]


class Worker(Schema):
    object: Literal["worker"] = "worker"
    id: str
    device: Device
    gpu: str | None = Field(description="Name of its GPU.")
    memory_bytes: int | None = Field(description="Of the GPU, else of the machine; null if not known.")
    started_at: datetime


class WorkerList(Schema):
    object: Literal["list"] = "list"
    data: list[Worker]


class ProblemItem(Schema):
    loc: list[str | int]
    code: str
    message: str


class Problem(Schema):
    """RFC 9457, as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ProblemItem] = []


class NotReady(Problem):
    """`checks` says of each part whether it is `ok`, and otherwise what is wrong with it."""

    checks: dict[str, str]


class Live(Schema):
    status: Literal["ok"] = "ok"


class Ready(Schema):
    """`degraded`: the database serves but hints to workers do not arrive; jobs start by the workers' own timers."""

    status: Literal["ok", "degraded"]
    checks: dict[str, str]
