"""What it costs that OpenMP's threads sleep, or spin, while they wait: updates a second of the bundled model.

Three ways to wait, each on an idle machine and beside one busy process: as the service has it (worker/forkserver.py),
to sleep at once, and GNU OpenMP's default, to spin for milliseconds. Bars for the service's: 0.9 of the fastest where
the machine is idle, 0.5 of the fastest beside a busy process. They take turns, each in a process of its own, and the
medians are compared. Writes `benchmarks/results/waiting.json`; exits with 1 if a bar is missed. Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from elder_core import devices, pipeline
from elder_core.errors import Cancelled
from elder_core.evaluation.environment import environment
from elder_core.inspection import Sources
from elder_core.spec import Environment, JobSpec, ModelRef, Progress, Stage
from worker.forkserver import wait_briefly

OUTPUT = Path(__file__).parent / "results" / "waiting.json"
LAYERS = (2, 4, 6, 7)
SERVICE = "as the service"
BARS = {"idle": 0.9, "beside a busy process": 0.5}


class Speed(BaseModel):
    """Training on such a `machine` with threads that wait in such a way.

    `updates_per_second` are those of each turn; `share` is of the fastest way on that machine.
    """

    machine: str
    waiting: str
    variables: dict[str, str]
    updates_per_second: list[float]
    median: float
    share: float


class Result(BaseModel):
    """The file."""

    command: str
    created_at: datetime
    environment: Environment
    spec: JobSpec
    seconds: float
    bars: dict[str, float]
    speeds: list[Speed]
    bars_met: bool


def main() -> int:
    options = _options()
    spec = JobSpec(model=ModelRef(id="builtin:manuals-16l"), layers=LAYERS, seed=options.seed)
    if options.measure:
        print(_updates_per_second(spec, options.seconds))
        return 0
    as_service: dict[str, str] = {}
    wait_briefly(as_service)
    ways = {SERVICE: as_service, "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"}, "GNU OpenMP's default": {}}
    cells: dict[tuple[str, str], list[float]] = {(machine, way): [] for machine in BARS for way in ways}
    for _ in range(options.turns):
        for (machine, way), found in cells.items():
            with _busy(machine != "idle"):
                found.append(_measured_apart(ways[way], options))
            print(f"{machine}, {way}: {found[-1]:.2f} updates per second", flush=True)
    speeds = []
    for machine in BARS:
        medians = {way: statistics.median(cells[machine, way]) for way in ways}
        speeds += [
            Speed(
                machine=machine,
                waiting=way,
                variables=variables,
                updates_per_second=cells[machine, way],
                median=medians[way],
                share=medians[way] / max(medians.values()),
            )
            for way, variables in ways.items()
        ]
    result = Result(
        command=shlex.join(["python", "benchmarks/waiting.py", *sys.argv[1:]]),
        created_at=datetime.now(UTC),
        environment=environment(devices.choose("cpu")),
        spec=spec,
        seconds=options.seconds,
        bars=BARS,
        speeds=speeds,
        bars_met=all(speed.share >= BARS[speed.machine] for speed in speeds if speed.waiting == SERVICE),
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for speed in speeds:
        print(f"{speed.machine}, {speed.waiting}: median {speed.median:.2f}, {speed.share:.2f} of the fastest")
    return 0 if result.bars_met else 1


@contextmanager
def _busy(busy: bool) -> Iterator[None]:
    """With another process that computes without end, or without one."""
    if not busy:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def _measured_apart(variables: dict[str, str], options: argparse.Namespace) -> float:
    """In a new process, since OpenMP reads its variables but once."""
    command = [sys.executable, __file__, "--measure", "--seconds", str(options.seconds), "--seed", str(options.seed)]
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(command, env={**unset, **variables}, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _updates_per_second(spec: JobSpec, seconds: float) -> float:
    """Of the updates after the first, which prepares much, for as long as `seconds`; the run ends there."""
    at: list[tuple[int, float]] = []

    def watch(progress: Progress) -> None:
        if progress.stage is Stage.REGULARIZING and progress.step:
            at.append((progress.step, time.monotonic()))

    with tempfile.TemporaryDirectory() as folder, suppress(Cancelled):
        pipeline.run(
            spec,
            model_dir=Path(folder) / "model",
            report_dir=Path(folder) / "report",
            sources=Sources(),
            device="cpu",
            progress=watch,
            cancelled=lambda: len(at) > 1 and at[-1][1] - at[0][1] >= seconds,
        )
    (first, began), (last, ended) = at[0], at[-1]
    return (last - first) / (ended - began)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of training in each turn")
    parser.add_argument("--measure", action="store_true", help="one turn in this process; prints updates per second")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
