"""The device that a run uses: which one, in which precision, how much of its memory."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch

from elder_core.errors import DeviceUnavailable, OutOfMemory

CPUINFO = Path("/proc/cpuinfo")
CPU_OUT_OF_MEMORY = re.compile("can't allocate memory|not enough memory", re.IGNORECASE)


def choose(device: str) -> torch.device:
    """The device called `device`: `auto` (CUDA where there is one, else the CPU), `cpu`, `cuda` or `cuda:N`.

    A CUDA device that is named becomes the thread's current one: what is asked of torch without naming one is asked of
    it, such as by events and by libraries.

    Raises:
        DeviceUnavailable: there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise DeviceUnavailable(f"There is no device {device!r}; give auto, cpu, cuda or cuda:N.")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DeviceUnavailable(
            f"Device {device!r} was asked for, but {torch.cuda.device_count()} CUDA devices are visible; "
            "give cpu or auto, or make one visible (CUDA_VISIBLE_DEVICES)."
        )
    if chosen.index is not None and chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether learning computes in bfloat16: on CUDA, and on a CPU that multiplies matrices of it (AMX).

    oneDNN multiplies them, and `ONEDNN_MAX_CPU_ISA` tells it to leave AMX alone: then in float32, as on other CPUs.
    """
    return device.type == "cuda" or _has_amx()


@cache
def _has_amx() -> bool:
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if "AMX" not in most and most not in {"", "ALL", "DEFAULT"}:
        return False
    return CPUINFO.is_file() and "amx_bf16" in CPUINFO.read_text(encoding="utf-8", errors="replace").split()


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Arithmetic of learning in bfloat16, over the weights as they are, where the device is fast at it."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if computes_in_bfloat16(device) else nullcontext()


def reset_peak_memory(device: torch.device) -> None:
    """Start counting anew. A process's own peak cannot be reset: on a CPU it counts from the process's start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def release_memory(device: torch.device) -> None:
    """Give what torch keeps of the device's memory, and nothing uses, back for other processes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: on CUDA of tensors on the device, on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def out_of_memory_named() -> Iterator[None]:
    """Turn what torch raises when memory runs out into an error that says what to lower.

    Raises:
        OutOfMemory: the memory ran out inside.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(error) from error
    except RuntimeError as error:  # torch's CPU allocator has no class of its own
        if CPU_OUT_OF_MEMORY.search(str(error)):
            raise _out_of_memory(error) from error
        raise


def _out_of_memory(error: BaseException) -> OutOfMemory:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return OutOfMemory(f"The device has too little memory for this job. {OutOfMemory.REMEDY} ({reason})")
