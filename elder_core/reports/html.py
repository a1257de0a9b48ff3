"""A report as one HTML file that needs nothing else: styles, scripts and data are within it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from elder_core.registry import find_method
from elder_core.reports import formatting
from elder_core.reports.assets import static_dir, templates_dir
from elder_core.reports.charts import charts
from elder_core.reports.figures import Comparison, comparisons
from elder_core.reports.summary import summary
from elder_core.reports.targets import asked, before_training, measured
from elder_core.spec import Report

HIGHLIGHTS = ("perplexity", "decode_tokens_per_second", "parameters", "bytes_on_disk")


@dataclass(frozen=True)
class Highlight:
    """One of the large figures at the top."""

    label: str
    value: str
    detail: str


def render(report: Report) -> str:
    """The whole page. It loads nothing, and its content security policy forbids it to."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_dir()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded_json"] = embedded_json
    page = environment.get_template("report.html")
    return page.render(
        report=report,
        method=find_method(report.spec.method.name),
        summary=summary(report),
        target=list(_target(report)),
        highlights=list(_highlights(comparisons(report.evaluation))),
        charts=charts(report),
        facts=list(_facts(report)),
        stage_times=[(stage.value, formatting.duration(seconds)) for stage, seconds in report.stage_seconds.items()],
        spec_json=report.spec.model_dump_json(indent=2),
        style=Markup((templates_dir() / "report.css").read_text(encoding="utf-8")),
        scripts=[_inline_script(name) for name in ("chart.umd.min.js", "charts.js")],
    )


def embedded_json(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no `<` is left that could close it.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", r"\u003c"))


def _inline_script(name: str) -> Markup:
    """A file of ours for a `<script>`. Within a string or a regular expression `<\\/` means the same as `</`."""
    text = (static_dir() / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("//# sourceMappingURL=")]
    return Markup("\n".join(lines).replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _highlights(found: Iterable[Comparison]) -> Iterable[Highlight]:
    by_field = {one.figure.field: one for one in found}
    layers = by_field["layers"]
    yield Highlight("Layers", f"{layers.before:.0f} → {layers.after:.0f}", formatting.change(layers.ratio))
    for field in HIGHLIGHTS:
        if one := by_field.get(field):
            yield Highlight(
                one.figure.label,
                formatting.change(one.ratio) if one.ideal is None else f"×{one.ratio:.2f}",
                f"{one.figure.text(one.before)} → {one.figure.text(one.after)}"
                + (f"; ideal ×{one.ideal:.2f}" if one.ideal is not None else ""),
            )


def _target(report: Report) -> Iterable[tuple[str, str]]:
    """What was asked for, what was chosen for it and what came of it, where the job named a target."""
    target = report.spec.target
    if target is not None:
        yield "Asked for", asked(target)
        if report.expected is not None:
            yield "Chosen", before_training(report.expected)
        yield "Measured afterwards", measured(target, report.evaluation) or "not measured"


def _facts(report: Report) -> Iterable[tuple[str, str]]:
    """Where the numbers come from."""
    evaluation, environment = report.evaluation, report.environment
    yield "Model", f"{report.model.id}, {report.model.architecture}, {report.model.dtype}"
    yield "Revision", report.model.revision
    yield "Calibration text", report.spec.calibration.source
    yield (
        "Evaluation text",
        f"{evaluation.source}: {evaluation.sequences:,} × {evaluation.sequence_length:,} tokens, "
        f"{evaluation.tokens:,} predictions",
    )
    yield "Seed", str(report.spec.seed)
    yield "Device", environment.device
    yield "Processor", f"{environment.cpu}, {environment.threads} threads"
    if environment.arithmetic is not None:
        yield "Learning in", environment.arithmetic
    yield "System", environment.platform
    yield "Versions", ", ".join(f"{name} {version}" for name, version in sorted(environment.versions.items()))
    yield "Peak memory of the run", formatting.size(report.peak_memory_bytes)
    if report.resumptions:
        yield "Interruptions", f"{report.resumptions}; the run went on where it was"
    yield "Created", f"{report.created_at:%d %B %Y, %H:%M:%S %Z}".strip()
