"""What choosing layers costs, and what removing them brings.

Two questions about the bundled model, at 25, 37.5 and 50 % of its layers:

1. How long do ELDeR and other methods take to choose, beside SLEB? Bar: ELDeR at most a quarter of SLEB's time at 50 %,
   both where training follows and where nothing is trained, and a search makes its set as good as SLEB's. The methods
   take turns on the same text, and the shortest of their times counts: what comes on top is the machine's.
2. How fast is the shorter model, beside the dense one less the removed layers' own time? Bar: 0.95 of that, at decoding
   and at reading a prompt, at every depth.

Writes `benchmarks/results/costs.json`; exits with 1 if a bar is missed. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import BaseModel

from elder_core import checkpoints, devices
from elder_core.calibration.windows import calibration_text, leading_token, token_stream
from elder_core.evaluation.environment import environment
from elder_core.evaluation.speed import compare_speed, workload
from elder_core.inspection import Sources, read_texts, text_path
from elder_core.methods.base import Context
from elder_core.monitor import Monitor
from elder_core.parameters import (
    ElderParameters,
    EvoPressParameters,
    MethodParameters,
    PruneCompParameters,
    ShortGptParameters,
    SlebParameters,
)
from elder_core.registry import find_method
from elder_core.spec import Environment, ModelRef
from elder_core.surgery import remove_layers

MODEL, CALIBRATION = "builtin:manuals-16l", "builtin:manuals-calibration"
LENGTH = 256
COUNTS = (4, 6, 8)
CHOOSING_BAR, SPEED_BAR = 0.25, 0.95
OUTPUT = Path(__file__).parent / "results" / "costs.json"
METHODS: dict[str, MethodParameters] = {
    "elder": ElderParameters(),
    "elder, nothing trained": ElderParameters(tokens=0),
    "sleb": SlebParameters(),
    "shortgpt": ShortGptParameters(),
    "prune_comp": PruneCompParameters(),
    "evopress": EvoPressParameters(),
}


class Choosing(BaseModel):
    """`seconds` is the shortest of all repetitions, `of_sleb` its share of SLEB's."""

    method: str
    layers: int
    removed: tuple[int, ...]
    seconds: float
    of_sleb: float


class Fast(BaseModel):
    """Speed-ups over the dense model, and over them those that are possible."""

    layers: int
    decode: float
    decode_of_ideal: float
    prefill: float
    prefill_of_ideal: float


class Result(BaseModel):
    """The file."""

    command: str
    created_at: datetime
    model: str
    revision: str
    seed: int
    repetitions: int
    environment: Environment
    choosing: list[Choosing]
    speed: list[Fast]
    bars_met: bool


def main() -> int:
    options = _options()
    device = devices.choose(options.device)
    source = checkpoints.resolve(ModelRef(id=MODEL), Sources())
    loaded = checkpoints.load(source, device)
    stream = token_stream(read_texts(text_path(CALIBRATION, Sources())), loaded.tokenizer)
    leading = leading_token(loaded.tokenizer)
    windows = calibration_text(stream, LENGTH, leading=leading, seed=options.seed).learning
    context = Context(loaded.model, windows, options.seed, device, Monitor())
    choosing = [found for count in COUNTS for found in _choosing(context, count, options.repetitions)]
    removed = {found.layers: found.removed for found in choosing if found.method == "elder"}
    speed = [_speed(context, removed[count], options.seconds) for count in COUNTS]
    own = [found for found in choosing if isinstance(METHODS[found.method], ElderParameters)]
    met = all(found.of_sleb <= CHOOSING_BAR for found in own if found.layers == max(COUNTS)) and all(
        min(found.decode_of_ideal, found.prefill_of_ideal) >= SPEED_BAR for found in speed
    )
    result = Result(
        command=shlex.join(["python", "benchmarks/costs.py", *sys.argv[1:]]),
        created_at=datetime.now(UTC),
        model=MODEL,
        revision=source.revision,
        seed=options.seed,
        repetitions=options.repetitions,
        environment=environment(device),
        choosing=choosing,
        speed=speed,
        bars_met=met,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result.model_dump(mode="json", include={"choosing", "speed", "bars_met"}), indent=1))
    return 0 if met else 1


def _choosing(context: Context, count: int, repetitions: int) -> list[Choosing]:
    """Every method once in each repetition, so that a slow minute of the machine meets them all."""
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    removed: dict[str, tuple[int, ...]] = {}
    for _ in range(repetitions):
        for name, parameters in METHODS.items():
            method = find_method(parameters.name).load()(parameters)
            started = time.monotonic()
            removed[name] = method.select(context, count).removed
            times[name].append(time.monotonic() - started)
            print(f"{count} layers, {name}: {times[name][-1]:.1f} s", file=sys.stderr, flush=True)
    return [
        Choosing(
            method=name,
            layers=count,
            removed=removed[name],
            seconds=min(found),
            of_sleb=min(found) / min(times["sleb"]),
        )
        for name, found in times.items()
    ]


def _speed(context: Context, removed: Sequence[int], seconds: float) -> Fast:
    pruned = copy.deepcopy(context.model)
    remove_layers(pruned, removed)
    work = workload(context.windows, limit=LENGTH, device=context.device)
    with torch.inference_mode():
        found = compare_speed(context.model, pruned, removed, work, budget_seconds=seconds)
    decode = found.after.decode_tokens_per_second / found.before.decode_tokens_per_second
    prefill = found.after.prefill_tokens_per_second / found.before.prefill_tokens_per_second
    return Fast(
        layers=len(removed),
        decode=decode,
        decode_of_ideal=decode / found.ideal.decode_speedup,
        prefill=prefill,
        prefill_of_ideal=prefill / found.ideal.prefill_speedup,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repetitions", type=int, default=3, help="times that each method chooses")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring speed, for each depth")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
