"""The files that the pages load, each at an address that changes with its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from elder_core.reports.assets import static_dir

_HERE = Path(__file__).resolve().parent / "static"


@dataclass(frozen=True)
class Asset:
    path: Path
    version: str


@cache
def assets() -> dict[str, Asset]:
    """By name: the dashboard's own files, and those that it shares with report.html."""
    files = [*_HERE.iterdir(), *static_dir().iterdir()]
    return {
        file.name: Asset(file, hashlib.sha256(file.read_bytes()).hexdigest()[:16])
        for file in files
        if file.suffix in (".js", ".css", ".svg")
    }


def asset_url(name: str) -> str:
    return f"/static/{name}?v={assets()[name].version}"
