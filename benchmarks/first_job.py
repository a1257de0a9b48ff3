"""Is ELDeR worth its time on the bundled model, and is the pruned model as fast as it should be?

Prunes `builtin:manuals-16l` by a quarter twice on this machine, with ELDeR's default settings and by removing the
layers that ShortGPT chooses, and measures both on the whole held-out test split. Two bars:

1. ELDeR's perplexity is lower than ShortGPT's.
2. ELDeR's model decodes at 0.9 or more of the ideal for the layers removed.

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
RATIO = 0.25
DECODE_BAR = 0.9
OUTPUT = Path(__file__).parent / "results" / "first_job.json"


class Run(BaseModel):
    """What one method did."""

    spec: JobSpec
    removed_layers: tuple[int, ...]
    stage_seconds: dict[Stage, float]
    evaluation: Evaluation


class Bars(BaseModel):
    """`…_of_ideal` is the measured speed-up over the speed-up of layers that cost nothing; 1 is perfect."""

    elder_perplexity: float
    shortgpt_perplexity: float
    perplexity_bar_met: bool
    decode_of_ideal: float
    prefill_of_ideal: float
    decode_bar: float = DECODE_BAR
    decode_bar_met: bool


class Result(BaseModel):
    """The file that is written."""

    command: str
    created_at: datetime
    model: str
    revision: str
    seed: int
    environment: Environment
    bars: Bars
    runs: dict[str, Run]


def main() -> int:
    options = _options()
    methods: tuple[MethodParameters, ...] = (ElderParameters(), ShortGptParameters())
    reports: dict[str, Report] = {method.name: _prune(method, options) for method in methods}
    result = _result(reports, options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result.bars.model_dump(), indent=2))
    return 0 if result.bars.perplexity_bar_met and result.bars.decode_bar_met else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the jobs and of the calibration order")
    parser.add_argument("--samples", type=int, help="test sequences to use, instead of all; for a quick look")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write")
    return parser.parse_args()


def _prune(method: MethodParameters, options: argparse.Namespace) -> Report:
    spec = JobSpec(
        model=ModelRef(id=MODEL),
        method=method,
        ratio=RATIO,
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


def _result(reports: dict[str, Report], seed: int) -> Result:
    elder = reports["elder"]
    return Result(
        command=shlex.join(["python", "benchmarks/first_job.py", *sys.argv[1:]]),
        created_at=datetime.now(UTC),
        model=elder.model.id,
        revision=elder.model.revision,
        seed=seed,
        environment=elder.environment,
        bars=bars(elder.evaluation, reports["shortgpt"].evaluation),
        runs={
            name: Run(
                spec=report.spec,
                removed_layers=report.removed_layers,
                stage_seconds=report.stage_seconds,
                evaluation=report.evaluation,
            )
            for name, report in reports.items()
        },
    )


def bars(elder: Evaluation, shortgpt: Evaluation) -> Bars:
    """Compare the two evaluations with what is asked of them; both must hold speeds."""
    assert elder.ideal is not None  # evaluation.speed is on
    decode = elder.ratios["decode_tokens_per_second"] / elder.ideal.decode_speedup
    return Bars(
        elder_perplexity=elder.after.perplexity,
        shortgpt_perplexity=shortgpt.after.perplexity,
        perplexity_bar_met=elder.after.perplexity < shortgpt.after.perplexity,
        decode_of_ideal=decode,
        prefill_of_ideal=elder.ratios["prefill_tokens_per_second"] / elder.ideal.prefill_speedup,
        decode_bar_met=decode >= DECODE_BAR,
    )


def _show(progress: Progress) -> None:
    end = "\n" if progress.step == progress.total else "\r"
    print(f"{progress.stage.value:>14} {progress.step:>5}/{progress.total:<5}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
