"""What a worker has, what a job needs, and whether the one can hold the other. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from elder_core import inspection
from elder_core.inspection import Sources
from elder_core.parameters import TrainingParameters, Weights
from elder_core.spec import JobSpec
from elder_core.weight_files import weight_files

# Of the weights' own bytes. Training all of them keeps a gradient and AdamW's two moments beside each.
TRAINING_COPIES = 4


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

    The weights as they are stored, and what training them takes. Activations and the weights' copies on the way come
    on top, so a worker that has just as much may still be too small.

    Raises:
        ModelError: there is no such model.
    """
    if inspection.is_hub_id(spec.model.id):
        return None
    weights = sum(file.stat().st_size for file in weight_files(inspection.local_model(spec.model.id, sources)))
    method = spec.method
    trains_all = isinstance(method, TrainingParameters) and method.trains and method.weights is Weights.FULL
    return weights * (TRAINING_COPIES if trains_all else 1)
