"""The library's command line seen by a person: the progress line, the tables, how a command ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from elder_core.errors import Cancelled, ElderError
from elder_core.reports.formatting import change
from elder_core.spec import Expected, LayerReport, Measurement, Progress, Report
from elder_core.sweep import Sweep

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130

SHOWN_METRICS = {"loss": "loss {:.4f}", "gate_mean": "mean weight {:.2f}", "gate": "weight {:.2f}"} | {
    "tokens_per_second": "{:,.0f} tokens/s",
    "score": "score of the set {:.4f}",
}

# field of Measurement → its name and format for people
ROWS = {
    "layers": ("layers", "{:,}"),
    "parameters": ("parameters", "{:,}"),
    "bytes_on_disk": ("bytes on disk", "{:,}"),
    "perplexity": ("perplexity", "{:.3f}"),
    "bits_per_byte": ("bits per byte", "{:.4f}"),
    "prefill_tokens_per_second": ("prefill tokens/s", "{:,.1f}"),
    "decode_tokens_per_second": ("decode tokens/s", "{:,.1f}"),
    "peak_memory_bytes": ("peak memory bytes", "{:,}"),
}


@contextmanager
def ending() -> Iterator[None]:
    """Turn the errors of a command into one line on stderr and an exit status.

    Raises:
        SystemExit: 2 for an ElderError, 130 for an interruption.
    """
    try:
        yield
    except ElderError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(
            f"error [{error.code}]: {error.message}"
        )
        raise SystemExit(EXIT_REFUSED) from error
    except (Cancelled, KeyboardInterrupt) as error:
        Console(stderr=True).print("interrupted")
        raise SystemExit(EXIT_INTERRUPTED) from error


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C was pressed. The first press ends the run at its next step; the second ends it at once."""
    pressed = False

    def press(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress_line() -> Iterator[Callable[[Progress], None]]:
    """One line on stderr that follows the run: stage, bar, step, metrics. Nothing where stderr is no terminal."""
    transformers_logging.disable_progress_bar()
    stderr = Console(stderr=True)
    line = rich_progress.Progress(
        rich_progress.TextColumn("{task.description:<12}"),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("{task.fields[metrics]}"),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
    task = line.add_task("", total=None, metrics="")

    def show(point: Progress) -> None:
        metrics = [text.format(point.metrics[name]) for name, text in SHOWN_METRICS.items() if name in point.metrics]
        line.update(
            task,
            description=point.stage.value,
            completed=point.step,
            total=point.total or None,
            metrics="  ".join(metrics),
        )

    with line:
        yield show


def layers_table(layers: Sequence[LayerReport], weight_label: str) -> Table:
    """Every layer with its weight, and which go."""
    table = Table(title=f"Layers by {weight_label}")
    for name in ("layer", "weight", ""):
        table.add_column(name, justify="right")
    for layer in layers:
        weight = "–" if layer.weight is None else f"{layer.weight:.4f}"
        table.add_row(str(layer.index), weight, "removed" if layer.removed else "")
    return table


def expected_table(expected: Expected) -> Table:
    """What the chosen layers are expected to cost and gain."""
    table = Table(title="Expected, before any training", show_header=False)
    text = "kept apart from learning" if expected.kept_apart else "of the calibration text"
    after = "no number" if expected.perplexity_after is None else f"{expected.perplexity_after:.3f}"
    table.add_row("layers to remove", f"{expected.layers}")
    table.add_row(f"perplexity, {expected.sequences:,} sequences {text}", f"{expected.perplexity_before:.3f} → {after}")
    if expected.decode_speedup is not None:
        table.add_row("ideal decode speed-up", f"× {expected.decode_speedup:.3f}")
    table.add_row("bytes on disk", f"{expected.bytes_on_disk:,}")
    if len(expected.tried) > 1:
        trials = [f"{trial.layers}: {trial.perplexity or float('nan'):.3f}" for trial in expected.tried]
        table.add_row("perplexity by layers removed", ", ".join(trials))
    return table


def report_table(report: Report) -> Table:
    """Before and after, with the ratio."""
    evaluation = report.evaluation
    table = Table(title=f"{report.model.id}: removed {', '.join(map(str, report.removed_layers))}")
    for name in ("", "before", "after", "after / before"):
        table.add_column(name, justify="right" if name else "left")
    for field, (name, form) in ROWS.items():
        before, after = getattr(evaluation.before, field), getattr(evaluation.after, field)
        if before is not None and after is not None:
            ratio = evaluation.ratios.get(field)
            table.add_row(name, form.format(before), form.format(after), "" if ratio is None else f"{ratio:.3f}")
    return table


def sweep_table(found: Sweep) -> Table:
    """A row for the dense model, and one for each depth."""
    table = Table(title=f"{found.model.id} by {found.method}")
    for name in ("layers", "parameters", "bytes on disk", "perplexity", "change", "decoding", "ideal"):
        table.add_column(name, justify="right")
    before = found.depths[0].evaluation.before
    _add_measured(table, before, "", "", "")
    for depth in found.depths:
        evaluation = depth.evaluation
        speed, ideal = evaluation.ratios.get("decode_tokens_per_second"), evaluation.ideal
        _add_measured(
            table,
            evaluation.after,
            change(evaluation.ratios["perplexity"]),
            "" if speed is None else f"× {speed:.2f}",
            "" if ideal is None else f"× {ideal.decode_speedup:.2f}",
        )
    return table


def _add_measured(table: Table, measured: Measurement, *rest: str) -> None:
    perplexity = f"{measured.perplexity:.3f}"
    table.add_row(str(measured.layers), f"{measured.parameters:,}", f"{measured.bytes_on_disk:,}", perplexity, *rest)


def measurement_table(measurement: Measurement, title: str) -> Table:
    """One model by itself."""
    table = Table(title=title, show_header=False)
    for field, (name, form) in ROWS.items():
        value = getattr(measurement, field)
        if value is not None:
            table.add_row(name, form.format(value))
    return table
