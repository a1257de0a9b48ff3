"""What a job of the fake pipeline does. It travels in the job's specification, as the first prompt."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from elder_core.spec import EvaluationSpec, JobSpec, ModelRef


@dataclass(frozen=True)
class Script:
    """By default: all stages in turn, in no time, and two small files."""

    step_seconds: float = 0.0
    endless_attempts: int = 0
    """So many first attempts stay in the stage `regularizing` until they are stopped."""
    deaf: bool = False
    """SIGTERM is ignored."""
    deadly: bool = False
    """Every attempt kills its own process in the stage `selecting`."""
    raises: str = ""
    """Name of an error of elder_core, raised in the stage `selecting`."""
    not_a_number: bool = False
    """The result holds NaN."""
    full_disk: bool = False
    """The checkpoint is written to a device on which there is no space."""

    def spec(self) -> JobSpec:
        evaluation = EvaluationSpec(prompts=(json.dumps(asdict(self)),))
        return JobSpec(model=ModelRef(id="builtin:manuals-16l"), ratio=0.25, evaluation=evaluation)


def script_of(spec: JobSpec) -> Script:
    prompts = spec.evaluation.prompts
    return Script(**json.loads(prompts[0])) if prompts else Script()


FILES = ("model/config.json", "model/model.safetensors", "report.json")
"""What a job leaves."""


def content(job_id: str, name: str) -> bytes:
    """Of its file `name`: the same in every attempt, another for every job."""
    return hashlib.sha256(f"{job_id} {name}".encode()).hexdigest().encode() * 100
