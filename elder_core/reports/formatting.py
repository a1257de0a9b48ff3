"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float) -> str:
    """Three significant digits or more: 0.0123, 4.57, 43.5, 1,234."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def count(value: float) -> str:
    """A whole number: 950, 7.31 million, 1.24 billion."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{number(value / size)} {name}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes, in decimal units: 14.6 MB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{number(value / unit)} {name}"
    return f"{value:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds, in the unit that fits: 8.12 ms, 4.57 s, 3 min 20 s."""
    if seconds < 1:
        return f"{number(seconds * 1000)} ms"
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def rate(per_second: float) -> str:
    return f"{number(per_second)} tokens/s"


def change(ratio: float) -> str:
    """after / before as a signed percentage: +8.5 %, −21 %."""
    percent = (ratio - 1) * 100
    digits = 1 if abs(percent) < 10 else 0
    text = f"{abs(percent):.{digits}f}"
    sign = "" if float(text) == 0 else "+" if percent > 0 else "−"
    return f"{sign}{text} %"


def listing(items: Sequence[object]) -> str:
    """3; 3 and 5; 3, 5 and 7."""
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else "none"
