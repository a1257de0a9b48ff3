"""Files that the report and the dashboard share: Chart.js and its licences, our drawing script, the chart template."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def static_dir() -> Path:
    """Folder of `chart.umd.min.js` (Chart.js 4, unchanged), `charts.js` (draws what charts.py makes), licences."""
    return _HERE / "static"


def templates_dir() -> Path:
    """Folder of the Jinja templates; `chart.html` holds the macro for one chart with its table."""
    return _HERE / "templates"
