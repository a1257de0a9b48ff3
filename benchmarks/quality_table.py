"""Writes docs/benchmarks.md from the results of `quality.py`; with --check, says whether it is up to date.

python benchmarks/quality_table.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
MARK = "<!-- made by benchmarks/quality_table.py from here on -->"
OWN, ABLATION = "elder", "ablation: "
HEADINGS = (
    "method",
    "seeds",
    "perplexity",
    "±",
    "over dense",
    "bits/byte",
    "KL",
    "same token",
    "same text",
    "distinct",
    "TFLOP choosing",
    "TFLOP training",
    "updates",
    "minutes",
)
LEGEND = (
    "*±*: half the range over the seeds. *KL*: nats from the dense model. *Same token*: how often the likeliest next "
    "token is the dense model's. *Same text*: share of a greedy continuation of 32 tokens before it leaves the dense "
    "model's. *Distinct*: share of distinct 3-grams in it. *Minutes* are of choosing and training, with the counting "
    "of operations, on a machine that was doing other things as well: they compare roughly."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    written = before.partition(MARK)[0] + MARK + "\n" + "".join(f"\n{line}" for line in tables()) + "\n"
    if check:
        return int(before != written)
    PAGE.write_text(written, encoding="utf-8")
    return 0


def tables() -> Iterator[str]:
    """The lines of all results, file by file and depth by depth."""
    for path in sorted(RESULTS.glob("quality-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        machine = result["environment"]
        yield f"## `{result['model']}`"
        yield ""
        whole, versions = result["dense"], machine["versions"]
        yield f"Dense: perplexity {whole['perplexity']:.2f}, {whole['bits_per_byte']:.3f} bits per byte, on"
        yield f"{result['windows']} windows of `{result['text']}`. {machine['cpu']}, {machine['threads']} threads,"
        yield f"torch {versions['torch']}, transformers {versions['transformers']}. `{result['command']}`"
        yield ""
        yield LEGEND
        for ratio in sorted({row["ratio"] for row in result["rows"]}):
            yield ""
            yield f"### {ratio:.1%} of the layers".replace(".0%", "%")
            yield ""
            rows, dense = [row for row in result["rows"] if row["ratio"] == ratio], whole["perplexity"]
            yield from _table([row for row in rows if not row["name"].startswith(ABLATION)], dense)
            if any(row["name"].startswith(ABLATION) for row in rows):
                yield ""
                yield "The default with one ingredient replaced:"
                yield ""
                yield from _table(
                    [row for row in rows if row["name"] == OWN or row["name"].startswith(ABLATION)], dense
                )
        yield ""


def _table(rows: Sequence[dict[str, Any]], dense: float) -> Iterator[str]:
    """Methods from best to worst."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    yield "| " + " | ".join(HEADINGS) + " |"
    yield "|" + "---|" * len(HEADINGS)
    for name, found in sorted(by_name.items(), key=lambda entry: _mean(entry[1], "perplexity")):
        perplexities = [row["perplexity"] for row in found]
        cells = (
            f"**{name}**" if name == OWN else name.removeprefix(ABLATION),
            str(len(found)),
            f"{mean(perplexities):.2f}",
            f"{(max(perplexities) - min(perplexities)) / 2:.2f}",
            f"{mean(perplexities) / dense - 1:+.1%}",
            f"{_mean(found, 'bits_per_byte'):.3f}",
            f"{_mean(found, 'kl'):.3f}",
            f"{_mean(found, 'agreement'):.1%}",
            f"{_mean(found, 'continuation'):.1%}",
            f"{_mean(found, 'distinct'):.1%}",
            f"{_mean(found, 'selection_flops') / 1e12:.2f}",
            f"{_mean(found, 'training_flops') / 1e12:.2f}",
            f"{_mean(found, 'updates'):.0f}",
            f"{(_mean(found, 'selection_seconds') + _mean(found, 'training_seconds')) / 60:.1f}",
        )
        yield "| " + " | ".join(cells) + " |"


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(mean(row[name] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
