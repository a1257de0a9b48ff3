"""`python -m elder_core`: the method without any service.

    prune     remove layers; write the checkpoint and its report to a folder
    cut       remove named layers from the files alone; no model is loaded, nothing is measured
    plan      show which layers would go and what that is expected to cost; write nothing
    sweep     remove layers to several depths, and compare them
    evaluate  measure one checkpoint

Exit status: 0 done; 2 bad usage or an error, which stands on stderr as `error [code]: message`; 130 interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console

from elder_core import console, pipeline
from elder_core.cache_folder import user_cache
from elder_core.errors import in_words
from elder_core.inspection import Sources
from elder_core.journal import Folder, Journal
from elder_core.registry import METHODS, find_method
from elder_core.spec import CalibrationSpec, EvaluationSpec, JobSpec, ModelRef

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=__doc__)
N = TypeVar("N", int, float)

Model = Annotated[str, typer.Option(help="Checkpoint folder, builtin:NAME, or hub id OWNER/NAME.")]
Ratio = Annotated[float | None, typer.Option(help="Share of the layers to remove.")]
LayersToRemove = Annotated[int | None, typer.Option(help="How many layers to remove.")]
Layers = Annotated[str | None, typer.Option(help="Exactly these layers, such as 3,7; selection is skipped.")]
MaxIncrease = Annotated[
    float | None, typer.Option(help="Remove the most layers for this much more perplexity: 0.1 allows 10 % more.")
]
MaxBytes = Annotated[int | None, typer.Option(help="Remove the fewest layers for weights of this many bytes.")]
MinSpeedup = Annotated[float | None, typer.Option(help="Remove the fewest layers to decode this many times as fast.")]
Calibration = Annotated[str, typer.Option(help="Text to learn from: .txt, .jsonl with a text field, or builtin:NAME.")]
Evaluation = Annotated[str, typer.Option(help="Text to measure on, in the same forms, unseen by calibration.")]
MethodName = Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A parameter of the method, or calibration.…, evaluation.…, output.…."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

CALIBRATION = CalibrationSpec().source
EVALUATION = EvaluationSpec().source


@app.command()
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, report.json and report.html.")],
    ratio: Ratio = None,
    layers_to_remove: LayersToRemove = None,
    layers: Layers = None,
    max_perplexity_increase: MaxIncrease = None,
    max_bytes: MaxBytes = None,
    min_speedup: MinSpeedup = None,
    calibration: Calibration = CALIBRATION,
    evaluation: Evaluation = EVALUATION,
    method: MethodName = "elder",
    settings: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what is found on the way; the same command goes on from it, with another --out where the "
            "checkpoint is there already."
        ),
    ] = None,
) -> None:
    """Remove layers from a model."""
    with console.ending(), console.interruptible() as cancelled, console.progress_line() as progress:
        removal = _removal(ratio, layers_to_remove, layers, max_perplexity_increase, max_bytes, min_speedup)
        spec = _spec(model, removal, calibration, evaluation, method, settings, seed)
        report = pipeline.run(
            spec,
            model_dir=out,
            report_dir=out,
            sources=_sources(),
            device=device,
            progress=progress,
            cancelled=cancelled,
            journal=None if journal is None else Journal(Folder(journal), stopping=cancelled),
        )
    _print_warnings(report.warnings)
    Console().print(console.report_table(report))
    Console(soft_wrap=True).print(f"Checkpoint and report: {out}", highlight=False)


@app.command()
def cut(
    model: Model,
    layers: Annotated[str, typer.Option(help="The layers to remove, counted from 0, such as 3,7.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="output.dtype=… or output.max_shard_bytes=…."),
    ] = None,
) -> None:
    """Remove layers from a checkpoint's files, without loading the model, in the memory of one tensor."""
    with console.ending(), console.interruptible() as cancelled, console.progress_line() as progress:
        if beside := [setting for setting in settings or () if not setting.startswith("output.")]:
            raise typer.BadParameter(f"--set {beside[0]!r}: cutting takes only output.… settings.")
        removal = _removal(None, None, layers, None, None, None)
        spec = _spec(model, removal, CALIBRATION, EVALUATION, "cut", settings, 0)
        done = pipeline.cut(spec, model_dir=out, sources=_sources(), progress=progress, cancelled=cancelled)
    removed = ", ".join(map(str, done.selection.removed))
    kept = done.summary.layers - len(done.selection.removed)
    Console(soft_wrap=True).print(
        f"{model}: removed {removed}; {kept} of {done.summary.layers} layers stay. Checkpoint: {out}",
        highlight=False,
        markup=False,
    )
    _print_warnings(done.warnings)


@app.command()
def plan(
    model: Model,
    ratio: Ratio = None,
    layers_to_remove: LayersToRemove = None,
    layers: Layers = None,
    max_perplexity_increase: MaxIncrease = None,
    max_bytes: MaxBytes = None,
    min_speedup: MinSpeedup = None,
    calibration: Calibration = CALIBRATION,
    evaluation: Evaluation = EVALUATION,
    method: MethodName = "elder",
    settings: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Show the weight of every layer, which would go, and what that is expected to cost. Nothing is written."""
    with console.ending(), console.interruptible() as cancelled, console.progress_line() as progress:
        removal = _removal(ratio, layers_to_remove, layers, max_perplexity_increase, max_bytes, min_speedup)
        spec = _spec(model, removal, calibration, evaluation, method, settings, seed)
        found = pipeline.plan(spec, sources=_sources(), device=device, progress=progress, cancelled=cancelled)
    _print_warnings(found.warnings)
    Console().print(console.layers_table(found.layers, found.weight_label))
    Console().print(console.expected_table(found.expected))


@app.command()
def sweep(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for one folder a depth, and sweep.json.")],
    ratios: Annotated[str | None, typer.Option(help="Shares of the layers to remove, such as 0.25,0.375.")] = None,
    counts: Annotated[str | None, typer.Option(help="Numbers of layers to remove, such as 4,6.")] = None,
    calibration: Calibration = CALIBRATION,
    evaluation: Evaluation = EVALUATION,
    method: MethodName = "elder",
    settings: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Remove layers to several depths, each from the dense model. Finished depths stay if it ends early."""
    with console.ending(), console.interruptible() as cancelled, console.progress_line() as progress:
        spec = _spec(model, {}, calibration, evaluation, method, settings, seed)
        found = pipeline.sweep(
            spec,
            out=out,
            ratios=_numbers("--ratios", ratios, float),
            counts=_numbers("--counts", counts, int),
            sources=_sources(),
            device=device,
            progress=progress,
            cancelled=cancelled,
        )
    _print_warnings([f"{depth.folder}: {warning}" for depth in found.depths for warning in depth.warnings])
    Console().print(console.sweep_table(found))
    Console(soft_wrap=True).print(f"A folder for each depth, and sweep.json: {out}", highlight=False)


def _numbers(option: str, text: str | None, kind: Callable[[str], N]) -> list[N]:
    try:
        return [kind(part) for part in text.split(",")] if text else []
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is no list of numbers with commas between.") from None


@app.command()
def evaluate(
    model: Model,
    data: Evaluation = EVALUATION,
    samples: Annotated[int | None, typer.Option(min=1, help="Sequences to use, spread over the text.")] = None,
    speed: Annotated[bool, typer.Option(help="Measure speed and memory too.")] = True,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure one checkpoint."""
    with console.ending(), console.interruptible() as cancelled, console.progress_line() as progress:
        with _bad_options():
            wanted = EvaluationSpec(source=data, speed=speed, generation=False, samples=samples)
            checkpoint = ModelRef(id=model)
        found = pipeline.measure(
            checkpoint, wanted, sources=_sources(), device=device, progress=progress, cancelled=cancelled
        )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        Console().print(console.measurement_table(found, f"{model} on {data}"))


def _sources() -> Sources:
    return Sources(allow_paths=True, token_cache=user_cache() / "tokens")


def _removal(
    ratio: float | None,
    layers_to_remove: int | None,
    layers: str | None,
    max_perplexity_increase: float | None,
    max_bytes: int | None,
    min_speedup: float | None,
) -> dict[str, Any]:
    try:
        named = None if layers is None else [int(layer) for layer in layers.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--layers {layers!r} is no list of layer numbers such as 3,7.") from None
    limits = {
        "max_perplexity_increase": max_perplexity_increase,
        "max_bytes": max_bytes,
        "min_speedup": min_speedup,
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return {"ratio": ratio, "layers_to_remove": layers_to_remove, "layers": named, "target": given or None}


def _spec(
    model: str,
    removal: dict[str, Any],
    calibration: str,
    evaluation: str,
    method: str,
    settings: Sequence[str] | None,
    seed: int,
) -> JobSpec:
    """The job that the options describe.

    Raises:
        UnknownMethod: there is no such method.
        typer.BadParameter: an option has a value that does not do.
    """
    parts: dict[str, dict[str, Any]] = {
        "method": {"name": find_method(method).name},
        "calibration": {"source": calibration},
        "evaluation": {"source": evaluation},
        "output": {},
    }
    for setting in settings or ():
        section, key, value = _setting(setting, tuple(parts))
        if (section, key) == ("method", "name"):
            raise typer.BadParameter(f"--set {setting!r}: --method names the method.")
        parts[section][key] = value
    with _bad_options(method):
        return JobSpec.model_validate({"model": {"id": model}, "seed": seed, **removal, **parts})


@contextmanager
def _bad_options(method: str = "") -> Iterator[None]:
    """Say in a line which option has a value that does not do."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != method)
        raise typer.BadParameter(f"{where}: {in_words(first)}.") from error


def _setting(setting: str, sections: Sequence[str]) -> tuple[str, str, Any]:
    """Section, key and value of `[SECTION.]KEY=VALUE`; a value is JSON where it reads as such, text otherwise."""
    path, equals, text = setting.partition("=")
    section, dot, key = path.rpartition(".")
    if not equals or not key or (dot and section not in sections):
        raise typer.BadParameter(f"--set {setting!r}: give KEY=VALUE, with one of {', '.join(sections)} before a dot.")
    try:
        return section or "method", key, json.loads(text)
    except json.JSONDecodeError:
        return section or "method", key, text


def _print_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


if __name__ == "__main__":
    app(prog_name="python -m elder_core")
