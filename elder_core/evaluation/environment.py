"""Where numbers were measured."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from elder_core.devices import CPUINFO, computes_in_bfloat16
from elder_core.spec import Environment


def environment(device: torch.device | str) -> Environment:
    """The machine and the versions that a run on `device` uses."""
    device = torch.device(device)
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in ("elder", "torch", "transformers")}
    name = str(device)
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        name = f"{device} ({torch.cuda.get_device_name(device)})"
    return Environment(
        device=name,
        cpu=_cpu_name(),
        threads=torch.get_num_threads(),
        arithmetic="bfloat16" if computes_in_bfloat16(device) else "float32",
        platform=platform.platform(),
        versions=versions,
    )


def _cpu_name() -> str:
    """Marketing name where the kernel tells it (Linux on x86), else the machine type."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
