"""The templates of the pages."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from api.dashboard.assets import asset_url
from elder_core.reports.assets import templates_dir
from elder_core.reports.html import embedded_json

_HERE = Path(__file__).resolve().parent / "templates"


@cache
def environment() -> jinja2.Environment:
    """Ours first, then those of report.html, for the macro that draws a chart."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_HERE, templates_dir()]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["asset"] = asset_url
    made.filters["embedded_json"] = embedded_json
    made.filters["prose"] = prose
    return made


def prose(text: str) -> Markup:
    """Plain text in which `backticks` mark code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def render(template: str, *, status_code: int = 200, **context: object) -> HTMLResponse:
    """A page; half of a surrogate pair in it, which UTF-8 cannot spell, becomes a question mark."""
    page = environment().get_template(template).render(context)
    return HTMLResponse(page.encode("utf-8", "replace"), status_code=status_code)
