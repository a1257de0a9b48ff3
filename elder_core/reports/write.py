"""Reports on disk."""

from __future__ import annotations

from pathlib import Path

from elder_core.reports.html import render
from elder_core.spec import Report

JSON_NAME = "report.json"
HTML_NAME = "report.html"


def write(report: Report, report_dir: Path) -> None:
    """Write `report.json` (schema `Report`) and `report.html` (for people) to `report_dir`, made if need be."""
    report_dir.mkdir(parents=True, exist_ok=True)
    (report_dir / JSON_NAME).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (report_dir / HTML_NAME).write_text(render(report), encoding="utf-8")
