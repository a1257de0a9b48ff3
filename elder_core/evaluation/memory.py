"""How much memory a saved model needs to run.

Measured in a process of its own, so that nothing else that a run holds is counted:
`python -m elder_core.evaluation.memory` reads a `_Task` as JSON from standard input and writes `{"peak_bytes": …}`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from elder_core.checkpoints import Resolved, checked, load
from elder_core.devices import choose, peak_memory_bytes
from elder_core.errors import MeasurementFailed, OutOfMemory
from elder_core.evaluation import decoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLL_SECONDS = 0.5
REASON_LINES = 5


@dataclass(frozen=True)
class _Task:
    model_dir: str
    device: str
    prompt: tuple[int, ...]
    new_tokens: int
    threads: int


def peak_memory(
    model_dir: Path,
    device: torch.device | str,
    prompt: Sequence[int],
    *,
    new_tokens: int = 4,
    check_cancelled: Callable[[], None] = lambda: None,
) -> int:
    """Peak bytes that a fresh process needs to load `model_dir`, read `prompt` and decode `new_tokens` tokens.

    On CUDA: `torch.cuda.max_memory_allocated`, which counts tensors, not the CUDA context. On CPU: the most
    physical memory that the process ever held (Linux: VmHWM of /proc/self/status) less what it held after importing
    torch and transformers, before loading; so it counts weights, both copies while they are read and converted, the
    cache and activations, but not the libraries. (`ru_maxrss` would not do on Linux: a child inherits its parent's.)
    On systems without /proc it is the growth of `ru_maxrss`.

    Raises:
        OutOfMemory: the process was killed, as the kernel does, or its device had too little memory.
        MeasurementFailed: the process failed otherwise; the message holds its last lines.
    """
    task = _Task(str(model_dir), str(device), tuple(prompt), new_tokens, torch.get_num_threads())
    with subprocess.Popen(
        [sys.executable, "-m", "elder_core.evaluation.memory"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            output, errors = _finish(child, json.dumps(asdict(task)), check_cancelled)
        finally:
            child.kill()
    if child.returncode != 0:
        raise _failure(child.returncode, errors, model_dir)
    return int(json.loads(output)["peak_bytes"])


def _finish(child: subprocess.Popen[str], task: str, check_cancelled: Callable[[], None]) -> tuple[str, str]:
    """Hand `task` over and wait for the end, looking for a cancel meanwhile."""
    given: str | None = task
    while True:
        try:
            return child.communicate(given, timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            given = None
            check_cancelled()


def _failure(returncode: int, errors: str, model_dir: Path) -> OutOfMemory | MeasurementFailed:
    what = f"Measuring the memory of {model_dir.name!r}"
    if returncode == -signal.SIGKILL or "out of memory" in errors.lower() or "MemoryError" in errors:
        return OutOfMemory(f"{what} needs more memory than there is; turn evaluation.speed off to do without it.")
    reason = "\n".join(errors.strip().splitlines()[-REASON_LINES:]) or "it wrote no reason"
    how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return MeasurementFailed(f"{what} failed with {how}: {reason}")


def _measure(task: _Task) -> int:
    torch.set_num_threads(task.threads)
    device, path = choose(task.device), Path(task.model_dir)
    on_cuda = device.type == "cuda"
    before = 0 if on_cuda else _resident_bytes()
    _run(load(Resolved(path, "", checked(path)), device, largest_id=max(task.prompt)).model, task)
    return peak_memory_bytes(device) if on_cuda else _peak_resident_bytes() - before


def _run(model: PreTrainedModel, task: _Task) -> None:
    ids, cache = torch.tensor([task.prompt], device=model.device), None
    for _ in range(1 + task.new_tokens):
        ids, cache = decoding.step(model, ids, cache)


def _resident_bytes() -> int:
    return _status_bytes("VmRSS") or _max_rss_bytes()


def _peak_resident_bytes() -> int:
    return _status_bytes("VmHWM") or _max_rss_bytes()


def _status_bytes(field: str) -> int | None:
    """A field of /proc/self/status; None where the system has no such file or field."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


def _max_rss_bytes() -> int:
    import resource  # not on Windows, which needs only CUDA's figure

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    task = _Task(**json.load(sys.stdin))
    print(json.dumps({"peak_bytes": _measure(task)}))


if __name__ == "__main__":
    main()
