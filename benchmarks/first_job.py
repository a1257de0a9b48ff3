"""What do ELDeR's defaults give on the bundled model, and how long do they take?

Prunes `builtin:manuals-16l` by a quarter and by a half on this machine, with ELDeR's default settings, and by a quarter
by removing the layers that ShortGPT chooses, and measures each on the whole held-out test split. The bars:

1. Choosing, training and removing take 3 minutes at a quarter, and 8 at a half.
2. Perplexity is within 4 % of the dense model's at a quarter, within 12 % at a half, and lower than ShortGPT's.
3. The models decode, and read prompts, at 0.95 or more of the ideal speed for the layers removed.

Writes `benchmarks/results/first_job.json`; exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from elder_core import pipeline
from elder_core.inspection import Sources
from elder_core.parameters import ElderParameters, MethodParameters, ShortGptParameters
from elder_core.spec import Environment, Evaluation, EvaluationSpec, JobSpec, ModelRef, Progress, Report, Stage

MODEL = "builtin:manuals-16l"
MOST_MINUTES, MOST_OVER_DENSE = {0.25: 3.0, 0.5: 8.0}, {0.25: 0.04, 0.5: 0.12}
OF_IDEAL = 0.95
PRUNING = (Stage.SELECTING, Stage.REGULARIZING, Stage.PRUNING)
OUTPUT = Path(__file__).parent / "results" / "first_job.json"


class Run(BaseModel):
    """What one method did at one depth."""

    spec: JobSpec
    removed_layers: tuple[int, ...]
    stage_seconds: dict[Stage, float]
    evaluation: Evaluation


class Bars(BaseModel):
    """The figures of ELDeR at one depth. `…_of_ideal` is the speed-up over that of layers that cost nothing."""

    ratio: float
    minutes: float
    over_dense: float
    decode_of_ideal: float
    prefill_of_ideal: float
    lower_than_shortgpt: bool | None
    missed: tuple[str, ...]


class Result(BaseModel):
    """The file that is written."""

    command: str
    created_at: datetime
    model: str
    revision: str
    seed: int
    environment: Environment
    bars: list[Bars]
    runs: list[Run]


def main() -> int:
    options = _options()
    shortgpt = _prune(ShortGptParameters(), min(MOST_MINUTES), options)
    elder = [_prune(ElderParameters(), ratio, options) for ratio in MOST_MINUTES]
    found = [bars(report, shortgpt if report.spec.ratio == shortgpt.spec.ratio else None) for report in elder]
    result = Result(
        command=shlex.join(["python", "benchmarks/first_job.py", *sys.argv[1:]]),
        created_at=datetime.now(UTC),
        model=shortgpt.model.id,
        revision=shortgpt.model.revision,
        seed=options.seed,
        environment=shortgpt.environment,
        bars=found,
        runs=[
            Run(
                spec=report.spec,
                removed_layers=report.removed_layers,
                stage_seconds=report.stage_seconds,
                evaluation=report.evaluation,
            )
            for report in (*elder, shortgpt)
        ],
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    print(json.dumps([one.model_dump() for one in found], indent=2))
    return 1 if any(one.missed for one in found) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the jobs and of the calibration order")
    parser.add_argument("--samples", type=int, help="test sequences to use, instead of all; for a quick look")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write")
    return parser.parse_args()


def _prune(method: MethodParameters, ratio: float, options: argparse.Namespace) -> Report:
    spec = JobSpec(
        model=ModelRef(id=MODEL),
        method=method,
        ratio=ratio,
        evaluation=EvaluationSpec(samples=options.samples, generation=False),
        seed=options.seed,
    )
    spec = spec.model_copy(update={"calibration": spec.calibration.model_copy(update={"seed": options.seed})})
    with tempfile.TemporaryDirectory() as folder:
        return pipeline.run(
            spec,
            model_dir=Path(folder) / "model",
            report_dir=Path(folder) / "report",
            sources=Sources(),
            device=options.device,
            progress=_show,
        )


def bars(elder: Report, shortgpt: Report | None) -> Bars:
    """Compare a report of ELDeR, and ShortGPT's of the same depth, with what is asked; it must hold speeds."""
    found, ratio = elder.evaluation, elder.spec.ratio
    assert found.ideal is not None  # evaluation.speed is on
    assert ratio is not None
    minutes = sum(elder.stage_seconds[stage] for stage in PRUNING) / 60
    over_dense = found.after.perplexity / found.before.perplexity - 1
    decode = found.ratios["decode_tokens_per_second"] / found.ideal.decode_speedup
    prefill = found.ratios["prefill_tokens_per_second"] / found.ideal.prefill_speedup
    lower = None if shortgpt is None else found.after.perplexity < shortgpt.evaluation.after.perplexity
    missed = {
        "minutes": minutes > MOST_MINUTES[ratio],
        "over_dense": over_dense > MOST_OVER_DENSE[ratio],
        "decode_of_ideal": decode < OF_IDEAL,
        "prefill_of_ideal": prefill < OF_IDEAL,
        "lower_than_shortgpt": lower is False,
    }
    return Bars(
        ratio=ratio,
        minutes=minutes,
        over_dense=over_dense,
        decode_of_ideal=decode,
        prefill_of_ideal=prefill,
        lower_than_shortgpt=lower,
        missed=tuple(bar for bar, is_missed in missed.items() if is_missed),
    )


def _show(progress: Progress) -> None:
    end = "\n" if progress.step == progress.total else "\r"
    print(f"{progress.stage.value:>14} {progress.step:>5}/{progress.total:<5}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
