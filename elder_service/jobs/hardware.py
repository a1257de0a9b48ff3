"""What a worker has, what a job needs, and whether the one can hold the other. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from elder_core import inspection
from elder_core.inspection import Sources
from elder_core.parameters import TrainingParameters, Weights
from elder_core.sizes import count_to_remove, parameter_count
from elder_core.spec import JobSpec

# Bytes of a weight that learns: itself in float32, its gradient and AdamW's two moments; of another: in bfloat16.
LEARNING, RESTING = 16, 2


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Capacity:
    """What one worker gives to its one job. `memory_bytes` is of the GPU, else of the machine; None if not known."""

    device: Device
    memory_bytes: int | None = None
    gpu: str | None = None


@dataclass(frozen=True)
class Needs:
    """What a worker must have at least; None: any."""

    device: Device | None = None
    memory_bytes: int | None = None

    def held_by(self, capacity: Capacity) -> bool:
        if self.device is not None and self.device is not capacity.device:
            return False
        return None in (self.memory_bytes, capacity.memory_bytes) or (
            int(self.memory_bytes or 0) <= int(capacity.memory_bytes or 0)
        )

    def __str__(self) -> str:
        device = {None: "a worker", Device.CPU: "a worker on a CPU", Device.CUDA: "a worker with a GPU"}[self.device]
        return device if self.memory_bytes is None else f"{device} and {gigabytes(self.memory_bytes)} of memory"


def gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.3g} GB"


def estimated_memory(spec: JobSpec, sources: Sources) -> int | None:
    """Bytes below which the job surely does not run; None of a hub model, whose files are not here.

    The weights as they are stored; where all that stay are trained, what that takes, the removed layers and the
    unpruned model that is asked. Activations and copies on the way come on top, so a worker that has just as much may
    still be too small.

    Raises:
        ModelError: there is no such model, or none that can be read.
        TargetError: the spec does not fit the model.
    """
    if inspection.is_hub_id(spec.model.id):
        return None
    info = inspection.inspect_checkpoint(inspection.local_model(spec.model.id, sources))
    method = spec.method
    if not isinstance(method, TrainingParameters) or not method.trains or method.weights is Weights.LORA:
        return info.weight_bytes
    count = count_to_remove(spec, info)
    removed = (info.layers - 1 if count is None else count) / info.layers  # all but one, where only the job will know
    resting = 1.0 if method.taught else removed
    return max(info.weight_bytes, round(parameter_count(info) * ((1 - removed) * LEARNING + resting * RESTING)))
