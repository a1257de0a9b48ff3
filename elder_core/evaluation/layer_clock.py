"""The time that some modules of a running model take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


class LayerClock:
    """Adds up the time between entering and leaving each of `modules`, by hooks on their forward passes.

    On CUDA the marks are events on the stream, so that work queued ahead is not counted; on any other device they
    are readings of `time.perf_counter`.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._modules = modules
        self._mark = _cuda_mark if device.type == "cuda" else time.perf_counter
        self._seconds_between = _cuda_seconds if device.type == "cuda" else _cpu_seconds
        self._marks: list[Any] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep the hooks on the modules within this context only."""
        with ExitStack() as stack:
            for module in self._modules:
                stack.callback(module.register_forward_pre_hook(self._before).remove)
                stack.callback(module.register_forward_hook(self._after).remove)
            yield

    def take_seconds(self) -> float:
        """Seconds within the modules since the last call. On CUDA the device must have finished its work."""
        marks, self._marks = self._marks, []
        return sum(self._seconds_between(entered, left) for entered, left in zip(marks[::2], marks[1::2], strict=True))

    def _before(self, _module: nn.Module, _args: Any) -> None:
        self._marks.append(self._mark())

    def _after(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._marks.append(self._mark())


def _cpu_seconds(entered: float, left: float) -> float:
    return left - entered


def _cuda_mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _cuda_seconds(entered: torch.cuda.Event, left: torch.cuda.Event) -> float:
    return float(entered.elapsed_time(left)) / 1000
