"""What this worker has to run jobs on. Imports no torch: CUDA must not be touched before the job's process."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from elder_service.errors import NoFreeGpu
from elder_service.jobs.hardware import Capacity, Device
from elder_service.settings import Settings

QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
QUERY_SECONDS = 30
VISIBLE = "CUDA_VISIBLE_DEVICES"
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Gpu:
    index: int
    uuid: str
    name: str
    memory_bytes: int | None  # not known


@contextmanager
def acquired(settings: Settings) -> Iterator[Capacity]:
    """What this process has for its one job at a time: a GPU that no other worker has, or the machine's memory.

    The environment is changed so that every process started from here on sees that GPU alone, as `cuda:0`, or none.

    Raises:
        NoFreeGpu: the GPU that the settings ask for is not there, or every one is another worker's.
    """
    wanted = _wanted(settings)
    if not wanted:
        yield _processor(settings)
        return
    gpu, locks = _take(wanted, settings)
    os.environ[VISIBLE] = gpu.uuid
    try:
        yield Capacity(Device.CUDA, gpu.memory_bytes, gpu.name)
    finally:
        _release(locks)


def _wanted(settings: Settings) -> list[Gpu]:
    """The GPUs of which this worker is to have one; none if it is to do without.

    Raises:
        NoFreeGpu: that of which ELDER_DEVICE gives the number is not there.
    """
    must = settings.device.startswith(Device.CUDA)
    if not must and settings.device != "auto":
        return []
    gpus = visible_gpus()
    if must and not gpus:
        return [_unlisted(settings)]
    number = settings.device.partition(":")[2]
    found = [gpu for position, gpu in enumerate(gpus) if number in {"", str(position)}]
    if gpus and not found:
        raise _none_free(settings, f"none of {len(gpus)} is number {number}")
    return found


def _processor(settings: Settings) -> Capacity:
    """Without any GPU: one that torch finds all the same would be nobody's, and so several workers'."""
    os.environ[VISIBLE] = ""
    return Capacity(Device.CPU, settings.memory_bytes or machine_memory())


def _unlisted(settings: Settings) -> Gpu:
    """The GPU that ELDER_DEVICE asks for where nvidia-smi, which is not everywhere that torch finds one, lists none."""
    number = int(settings.device.partition(":")[2] or 0)
    allowed = _allowed()
    if allowed is None:
        return Gpu(number, str(number), f"GPU {number}", None)
    if number >= len(allowed):
        raise _none_free(settings, f"{VISIBLE} is {os.environ[VISIBLE]!r}")
    return Gpu(number, allowed[number], f"GPU {allowed[number]}", None)


def visible_gpus() -> list[Gpu]:
    """The GPUs of this machine that this process may use; none where nvidia-smi is missing or fails."""
    try:
        listed = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = [_gpu(line) for line in listed.splitlines() if line.strip()]
    allowed = _allowed()
    if allowed is None:
        return gpus
    return [gpu for gpu in gpus if str(gpu.index) in allowed or gpu.uuid in allowed]


def _allowed() -> list[str] | None:
    """The GPUs, by index or uuid, that this process was started with; None: all of them."""
    names = os.environ.get(VISIBLE)
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _gpu(line: str) -> Gpu:
    index, uuid, name, mebibytes = (part.strip() for part in line.split(","))
    memory_bytes = int(mebibytes) * MEBIBYTE if mebibytes.isdecimal() else None  # "[N/A]" where it is the machine's
    return Gpu(int(index), uuid, name, memory_bytes)


def _take(wanted: list[Gpu], settings: Settings) -> tuple[Gpu, list[int]]:
    for gpu in wanted:
        if (locks := _lock(gpu, settings)) is not None:
            return gpu, locks
    raise _none_free(settings, ", ".join(f"{gpu.index} ({gpu.name})" for gpu in wanted))


def _none_free(settings: Settings, why: str) -> NoFreeGpu:
    return NoFreeGpu(
        f"ELDER_DEVICE is {settings.device}, and no GPU is free for this worker: {why}. Each belongs to one worker: "
        "stop another one, or set ELDER_DEVICE=cpu."
    )


def _lock(gpu: Gpu, settings: Settings) -> list[int] | None:
    """Locks of one GPU, which end with this process however it ends; None if another worker has one.

    One is for workers of this machine, one for those in containers that share the data folder.
    """
    held: list[int] = []
    for folder in (Path(tempfile.gettempdir()) / "elder-gpus", settings.data_dir / "gpus"):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # of another user, who made it
            folder.chmod(0o777)
        descriptor = os.open(
            folder / f"{gpu.uuid.replace('/', '-')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
        )
        held.append(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _release(held)
            return None
    return held


def _release(locks: list[int]) -> None:
    for descriptor in locks:
        os.close(descriptor)


def machine_memory() -> int | None:
    """Bytes of memory, or of the container's limit if that is less; None where neither can be read."""
    found = []
    with suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found.append(int(Path(limit).read_text()))
    return min(found, default=None)
