"""Which GPU a worker takes, of a machine whose nvidia-smi the test wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from elder_service.errors import NoFreeGpu
from elder_service.jobs.hardware import Capacity, Device
from elder_service.settings import Settings
from worker import hardware
from worker.hardware import VISIBLE, acquired

LISTED = "0, GPU-aaa, NVIDIA H100 80GB HBM3, 81559\n1, GPU-bbb, NVIDIA A10, 23028\n"
H100 = Capacity(Device.CUDA, 81559 * 2**20, "NVIDIA H100 80GB HBM3")
A10 = Capacity(Device.CUDA, 23028 * 2**20, "NVIDIA A10")


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No GPU, locks in a folder of the test's own, and an environment that is as before afterwards."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv(VISIBLE, "")
    monkeypatch.delenv(VISIBLE)
    yield
    os.environ.pop(VISIBLE, None)


@pytest.fixture
def gpus(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '{LISTED}'\n")
    program.chmod(0o755)


def on(settings: Settings, device: str) -> Settings:
    return settings.model_copy(update={"device": device})


@pytest.mark.usefixtures("gpus")
def test_each_worker_has_a_gpu_of_its_own(settings: Settings) -> None:
    with ExitStack() as first, ExitStack() as second:
        assert first.enter_context(acquired(settings)) == H100
        assert os.environ[VISIBLE] == "GPU-aaa"
        del os.environ[VISIBLE]  # the second is another process
        assert second.enter_context(acquired(settings)) == A10
        assert os.environ[VISIBLE] == "GPU-bbb"
        del os.environ[VISIBLE]
        with pytest.raises(NoFreeGpu, match=r"ELDER_DEVICE is auto, .* 0 \(NVIDIA H100.*1 \(NVIDIA A10\).*=cpu"):
            acquired(settings).__enter__()
        with pytest.raises(NoFreeGpu, match=r"cuda:1, .*: 1 \(NVIDIA A10\)"):
            acquired(on(settings, "cuda:1")).__enter__()
        first.close()
        with acquired(on(settings, "cuda:0")) as again:
            assert again == H100


@pytest.mark.usefixtures("gpus")
def test_only_one_that_is_there_and_may_be_used(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoFreeGpu, match="none of 2 is number 7"):
        acquired(on(settings, "cuda:7")).__enter__()
    monkeypatch.setenv(VISIBLE, "1")
    with acquired(settings) as capacity:
        assert capacity == A10


@pytest.mark.usefixtures("gpus")
def test_a_worker_on_the_cpu_sees_no_gpu(settings: Settings) -> None:
    small = on(settings, "cpu").model_copy(update={"memory_bytes": 123})
    with acquired(small) as capacity:
        assert capacity == Capacity(Device.CPU, 123)
        assert os.environ[VISIBLE] == ""


def test_a_machine_without_gpus(settings: Settings) -> None:
    with acquired(settings) as capacity:
        assert capacity.device is Device.CPU
        assert capacity.memory_bytes is not None
        assert capacity.memory_bytes > 10**8
        assert os.environ[VISIBLE] == "", "torch may find one all the same, which then every worker would use"


@pytest.mark.parametrize(
    ("device", "visible", "taken"),
    [("cuda", None, "0"), ("cuda:1", None, "1"), ("cuda:1", "4,MIG-GPU-a/1/0", "MIG-GPU-a/1/0")],
)
def test_a_gpu_that_only_torch_can_tell_of_is_no_other_workers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, taken: str
) -> None:
    def as_at_first() -> None:
        if visible is None:
            monkeypatch.delenv(VISIBLE, raising=False)
        else:
            monkeypatch.setenv(VISIBLE, visible)

    as_at_first()
    with acquired(on(settings, device)) as capacity:
        assert capacity == Capacity(Device.CUDA, None, f"GPU {taken}")
        assert os.environ[VISIBLE] == taken
        as_at_first()  # the second is another process
        with pytest.raises(NoFreeGpu, match=f"ELDER_DEVICE is {device}, .*GPU {taken}"):
            acquired(on(settings, device)).__enter__()


def test_a_gpu_that_may_not_be_used_is_not_taken(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "")
    with pytest.raises(NoFreeGpu, match=f"{VISIBLE} is ''"):
        acquired(on(settings, "cuda")).__enter__()


def test_a_gpu_whose_memory_is_the_machines(settings: Settings, gpus: None, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text(program.read_text().replace("81559", "[N/A]"))
    with acquired(settings) as capacity:
        assert capacity == Capacity(Device.CUDA, None, "NVIDIA H100 80GB HBM3")


def test_memory_is_the_containers_if_it_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "1000\n")
    assert hardware.machine_memory() == 1000
    monkeypatch.setattr(Path, "read_text", lambda _: "max\n")
    whole = hardware.machine_memory()
    assert whole is not None
    assert whole > 10**8
