"""Times, durations and states as people read them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from elder_core.reports import formatting, targets
from elder_core.spec import JobSpec, Stage
from elder_service.jobs.states import Status

STAGE_NAMES = {
    Stage.RESOLVING: "Finding the model",
    Stage.CALIBRATING: "Reading the texts",
    Stage.LOADING: "Loading",
    Stage.SELECTING: "Selecting layers",
    Stage.REGULARIZING: "Regularising",
    Stage.PRUNING: "Removing layers",
    Stage.EXPORTING: "Saving the model",
    Stage.EVALUATING: "Evaluating",
}

STATUS_NAMES = {status: status.value.capitalize() for status in Status}

NO_BREAK_SPACE = "\u00a0"

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))  # static/dashboard.js has the same table


@dataclass(frozen=True)
class Moment:
    """A time, for `<time>`: machine-readable, exact for people, and how long ago."""

    iso: str
    exact: str
    ago: str


def moment(at: datetime, now: datetime) -> Moment:
    at = at.astimezone(UTC)
    return Moment(at.isoformat(timespec="seconds"), f"{at:%Y-%m-%d %H:%M:%S} UTC", ago(at, now))


def ago(at: datetime, now: datetime) -> str:
    """now; 12 s ago; 3 min ago; 5 h ago; 2 d ago."""
    seconds = (now - at).total_seconds()
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "now"


def elapsed(seconds: float) -> str:
    """A duration that is seen to grow: 0.4 s, 45 s, 3 min 20 s."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    return f"{seconds:.0f} s" if seconds < 60 else formatting.duration(seconds)


def target(spec: JobSpec) -> str:
    """What the job was asked to remove."""
    if spec.ratio is not None:
        return f"{100 * spec.ratio:.3g} % of layers".replace(" ", NO_BREAK_SPACE)
    if spec.layers_to_remove is not None:
        return f"{spec.layers_to_remove} layer{'s' if spec.layers_to_remove != 1 else ''}"
    if spec.target is not None:
        return targets.asked(spec.target).replace(" %", f"{NO_BREAK_SPACE}%")
    layers = spec.layers or ()
    return f"layer{'s' if len(layers) != 1 else ''} {formatting.listing(layers)}"


def metric_name(name: str) -> str:
    return name.replace("_", " ")


def metrics(values: dict[str, float]) -> tuple[tuple[str, str], ...]:
    return tuple((metric_name(name), formatting.number(value)) for name, value in values.items())
