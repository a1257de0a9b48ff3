"""The plots of a report as Chart.js configs: plain JSON, drawn by static/charts.js. Imports no torch.

A colour is the name of a CSS custom property (`--chart-1`), so that a page decides, in the dark too; `hatch:--chart-1`
is that colour hatched. Three keys of a dataset are ours: `texts` (what a tooltip says, by point), `written` (also write
the texts on the bars) and `unlisted` (not in the legend).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from elder_core.reports import formatting
from elder_core.reports.figures import comparisons
from elder_core.spec import Evaluation, GatePoint, LayerReport, Report, TrainingPoint

MOST_POINTS = 240
MOST_ROWS = 24
WIDEST_PERCENT = 300
SMOOTH_FROM = 24
DASHES: tuple[list[int], ...] = ([], [7, 3], [2, 3], [9, 3, 2, 3])
SERIES = ("--chart-removed", "--chart-2", "--chart-3", "--chart-4")

Cell = str | int


@dataclass(frozen=True)
class Table:
    """A chart's numbers for those who do not see it. The first cell of a row names the row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Chart:
    """`summary` says in one sentence what is to be seen. `config` is for Chart.js, through static/charts.js."""

    id: str
    title: str
    summary: str
    config: dict[str, Any]
    table: Table
    tall: bool = False


def charts(report: Report) -> list[Chart]:
    """Every chart that `report` has data for, in reading order."""
    found = [comparison(report.evaluation)]
    if any(layer.weight is not None for layer in report.layers):
        found.append(layer_weights(report.layers, report.weight_label))
    if report.gate_path:
        found.append(gate_path(report.gate_path, report.removed_layers))
    return [*found, *training(report.training)]


def comparison(evaluation: Evaluation) -> Chart:
    """Bars of every figure after pruning, as a percentage of the same figure before."""
    shown = [one for one in comparisons(evaluation) if one.figure.in_chart]
    labels = [[one.figure.label, one.figure.better] for one in shown]
    datasets = [
        _bars("Before", "--chart-muted", [100.0] * len(shown), [one.figure.text(one.before) for one in shown]),
        _bars(
            "After",
            "--chart-1",
            [100 * one.ratio for one in shown],
            [f"{one.figure.text(one.after)} ({formatting.change(one.ratio)})" for one in shown],
        ),
    ]
    if evaluation.ideal:
        ideals = [None if one.ideal is None else 100 * one.ideal for one in shown]
        texts = ["" if one.ideal is None else f"ideal: ×{one.ideal:.2f}" for one in shown]
        datasets.append(_bars("Ideal, if removed layers were all that counted", "hatch:--chart-1", ideals, texts))
    widest = max((100 * one.ratio for one in shown), default=100)
    x_axis = _axis("% of the original model") | {"beginAtZero": True}
    if widest > WIDEST_PERCENT:
        x_axis["max"] = WIDEST_PERCENT
    rows = tuple(
        (
            one.figure.label,
            one.figure.text(one.before),
            one.figure.text(one.after),
            formatting.change(one.ratio),
            "–" if one.ideal is None else formatting.change(one.ideal),
        )
        for one in comparisons(evaluation)
    )
    cut = f" Bars are cut at {WIDEST_PERCENT} %." if widest > WIDEST_PERCENT else ""
    return Chart(
        "comparison",
        "Before and after",
        f"Each figure of the pruned model as a percentage of the original's.{cut}",
        _sideways(_config("bar", labels, datasets, x=x_axis, y=_axis(None, grid=False))),
        Table(("Figure", "Before", "After", "Change", "Ideal change"), rows),
        tall=True,
    )


def layer_weights(layers: Sequence[LayerReport], label: str) -> Chart:
    """One bar a layer; the removed ones are hatched and marked in their name."""
    known = [layer for layer in layers if layer.weight is not None]
    names = [[str(layer.index), "✕" if layer.removed else ""] for layer in known]
    x_axis = _axis("Layer", grid=False) | {"ticks": {"maxRotation": 0, "autoSkip": len(known) > MOST_ROWS}}
    datasets = [
        _layer_bars("Kept", "--chart-1", [None if layer.removed else layer.weight for layer in known]),
        _layer_bars("Removed ✕", "hatch:--chart-removed", [layer.weight if layer.removed else None for layer in known]),
    ]
    removed = [layer.index for layer in layers if layer.removed]
    rows = tuple(
        (
            f"Layer {layer.index}",
            "–" if layer.weight is None else formatting.number(layer.weight),
            "removed" if layer.removed else f"kept as layer {layer.new_index}",
        )
        for layer in layers
    )
    return Chart(
        "layer-weights",
        "How much each layer matters",
        f"{label[:1].upper()}{label[1:]}, by layer. Removed: {formatting.listing(removed)}.",
        _config("bar", names, datasets, x=x_axis, y=_axis(label) | {"beginAtZero": True}),
        Table(("Layer", label[:1].upper() + label[1:], "Outcome"), rows),
    )


def gate_path(points: Sequence[GatePoint], removed: Sequence[int]) -> Chart:
    """One line a layer over all updates of stage 1."""
    places = spread(len(points), MOST_POINTS)
    layers = range(len(points[0].weights) if points else 0)
    order = {layer: place for place, layer in enumerate(sorted(removed))}
    datasets = [
        _gate_line(layer, order.get(layer), [points[place].weights[layer] for place in places], places)
        for layer in sorted(layers, key=lambda layer: layer in order)
    ]
    ends = list({point.round: point for point in points}.values())  # the last of each round
    rows = tuple((f"Layer {layer}", *(formatting.number(point.weights[layer]) for point in ends)) for layer in layers)
    return Chart(
        "gate-path",
        "How the layer weights were learnt",
        "Each line is the weight of one layer while the weights were learnt; those of removed layers are highlighted.",
        _config("line", None, datasets, x=_linear("Update of the layer weights"), y=_axis("Weight") | _UNIT),
        Table(("Layer", *(f"End of round {point.round}" for point in ends)), rows),
    )


def training(points: Sequence[TrainingPoint]) -> list[Chart]:
    """Loss, penalty and gate over the updates of stage 2; one chart each, where there is something to see."""
    found = [
        _training("loss", "Training loss", "The loss while the model was prepared for the removal.", points),
        _training(
            "penalty",
            "Effect of the chosen layers",
            "How much the chosen layers still changed their input; the regulariser presses it towards 0.",
            points,
        ),
        _training("gate", "Weight of the chosen layers", "At 0, removing a layer changes nothing.", points),
    ]
    return [chart for chart in found if chart is not None]


_UNIT = {"min": 0, "suggestedMax": 1}


def _training(field: str, title: str, summary: str, points: Sequence[TrainingPoint]) -> Chart | None:
    known = [(point.update, value) for point in points if (value := getattr(point, field)) is not None]
    if not any(value for _, value in known):
        return None
    updates, values = [update for update, _ in known], [float(value) for _, value in known]
    places = spread(len(known), MOST_POINTS)
    datasets = [_line(title, "--chart-1", [updates[place] for place in places], [values[place] for place in places])]
    if field == "loss" and len(values) >= SMOOTH_FROM:
        smooth = _smoothed(values)
        datasets[0] |= {"borderColor": "--chart-1-soft", "label": "Each update"}
        datasets.append(
            _line("Smoothed", "--chart-1", [updates[place] for place in places], [smooth[place] for place in places])
        )
    rows = tuple((updates[place], formatting.number(values[place])) for place in spread(len(known), MOST_ROWS))
    y_axis = _axis(None) | (_UNIT if field == "gate" else {"type": _scale(values)})
    return Chart(
        f"training-{field}",
        title,
        summary,
        _config("line", None, datasets, x=_linear("Update"), y=y_axis),
        Table(("Update", title), rows),
    )


def _gate_line(layer: int, place: int | None, values: Sequence[float], steps: Sequence[int]) -> dict[str, Any]:
    """Kept layers are thin and unlisted; the removed ones differ by colour and dash, in turn."""
    if place is None:
        line = _line(f"Layer {layer}", "--chart-faint", steps, values)
        return line | {"borderWidth": 1, "unlisted": True}
    line = _line(f"Layer {layer} (removed)", SERIES[place % len(SERIES)], steps, values)
    return line | {"borderDash": DASHES[(place + place // len(SERIES)) % len(DASHES)]}


def _bars(label: str, colour: str, values: Sequence[float | None], texts: Sequence[str]) -> dict[str, Any]:
    return _layer_bars(label, colour, values) | {"texts": list(texts), "written": True}


def _layer_bars(label: str, colour: str, values: Sequence[float | None]) -> dict[str, Any]:
    return {
        "label": label,
        "data": [None if value is None else _finite(value) for value in values],
        "backgroundColor": colour,
        "borderColor": colour.removeprefix("hatch:"),
        "borderWidth": 1,
        "skipNull": True,
    }


def _line(label: str, colour: str, xs: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
    return {
        "label": label,
        "data": [{"x": x, "y": _finite(value)} for x, value in zip(xs, values, strict=True)],
        "borderColor": colour,
        "backgroundColor": colour,
        "borderWidth": 2,
        "pointRadius": 0,
        "pointHitRadius": 8,
    }


def _config(
    kind: str, labels: Sequence[Any] | None, datasets: list[dict[str, Any]], *, x: dict[str, Any], y: dict[str, Any]
) -> dict[str, Any]:
    data: dict[str, Any] = {"datasets": datasets}
    if labels is not None:
        data["labels"] = list(labels)
    return {"type": kind, "data": data, "options": {"scales": {"x": x, "y": y}}}


def _sideways(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"options": config["options"] | {"indexAxis": "y"}}


def _axis(title: str | None, *, grid: bool = True) -> dict[str, Any]:
    return {"title": {"display": title is not None, "text": title or ""}, "grid": {"display": grid}}


def _linear(title: str) -> dict[str, Any]:
    return _axis(title, grid=False) | {"type": "linear", "ticks": {"precision": 0}}


def _scale(values: Sequence[float]) -> str:
    """Logarithmic where values are positive and span more than two decades."""
    return "logarithmic" if min(values) > 0 and max(values) / min(values) > 100 else "linear"


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean of a window centred on each value, a tenth of all values wide, narrower at the ends."""
    reach = max(1, len(values) // 20)
    windows = [values[max(0, place - reach) : place + reach + 1] for place in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def spread(length: int, most: int) -> list[int]:
    """At most `most` places below `length`, evenly spread, the first and the last among them."""
    if length <= most:
        return list(range(length))
    return [round(place * (length - 1) / (most - 1)) for place in range(most)]


def _finite(value: float) -> float | None:
    """JSON has no NaN; digits beyond six only make the file longer."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
