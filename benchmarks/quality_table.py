"""Writes docs/benchmarks.md from the results of `quality.py`; with --check, says whether it is up to date.

python benchmarks/quality_table.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from quality import Row, made_by, recipes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
MARK = "<!-- made by benchmarks/quality_table.py from here on -->"
OWN, ABLATION = "elder", "ablation: "
SAME = 0.02  # of operations: an update is up to a percent of them
RECIPES = {recipe.name: recipe for recipe in recipes()}
HEADINGS = (
    "method",
    "seeds",
    "perplexity",
    "±",
    "over dense",
    "ELDeR lower by",
    "bits/byte",
    "KL",
    "same token",
    "same text",
    "distinct",
    "k tokens choosing",
    "k tokens training",
    "updates",
    "TFLOP choosing",
    "TFLOP training",
    "minutes",
)
LEGEND = (
    "*±*: half the range over the seeds. *ELDeR lower by*: how far the default's perplexity is below the row's, over "
    "the row's seeds. *KL*: nats from the dense model. *Same token*: how often the likeliest next token is the dense "
    "model's. *Same text*: share of a greedy continuation of 32 tokens before it leaves the dense model's. *Distinct*: "
    "share of distinct 3-grams in it. *Tokens* are of calibration text: different ones that were read to choose, "
    "and all that were read in training. *Minutes*, the middle of the seeds, are of choosing and training, with the "
    "counting of operations (that of training's only in rows of before 0.3.8), on a machine that was doing other "
    "things as well: they compare roughly."
)
LEGEND_OF_EARLIER = (
    " *Earlier*: made before a setting or the method itself changed, such as the matching of hidden states with "
    "version 0.3.0; a run makes them anew."
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
    for path in sorted(RESULTS.glob("quality-*.json"), key=lambda path: path.stem):
        result = json.loads(path.read_text(encoding="utf-8"))
        versions = result["environment"]["versions"]
        yield f"## `{result['model']}` on `{result['text']}`"
        yield ""
        whole = result["dense"]
        yield f"Dense: perplexity {whole['perplexity']:.2f}, {whole['bits_per_byte']:.3f} bits per byte, on"
        yield f"{result['windows']} windows of `{result['text']}`. torch {versions['torch']}, transformers"
        yield f"{versions['transformers']}, on {_machines(result['rows'])}. `{result['command']}`"
        yield ""
        yield LEGEND + (LEGEND_OF_EARLIER if any(map(_is_earlier, result["rows"])) else "")
        for ratio in sorted({row["ratio"] for row in result["rows"]}):
            yield ""
            rows, dense = [row for row in result["rows"] if row["ratio"] == ratio], whole["perplexity"]
            (count,) = {len(row["removed"]) for row in rows}
            yield f"### {ratio:.1%} of the layers: {count} removed".replace(".0%", "%")
            yield ""
            yield from _speed(result, rows)
            yield from _table([row for row in rows if not row["name"].startswith(ABLATION)], dense)
            if any(row["name"].startswith(ABLATION) for row in rows):
                yield ""
                yield "The default with one ingredient replaced:"
                yield ""
                yield from _table(
                    [row for row in rows if row["name"] == OWN or row["name"].startswith(ABLATION)], dense
                )
        yield ""


def _machines(rows: Sequence[dict[str, Any]]) -> str:
    """What the rows were made on, the most frequent first."""
    counts = Counter(row["machine"] for row in rows)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{machine} ({count} rows)" for machine, count in counts.most_common())


def _speed(result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The speed of all rows of one depth: they have equally many equal layers."""
    costs = json.loads((RESULTS / "costs.json").read_text(encoding="utf-8"))
    if result["model"] != costs["model"]:
        return
    (count,) = {len(row["removed"]) for row in rows}
    found = next((one for one in costs["speed"] if one["layers"] == count), None)
    if found is None:
        return
    yield f"Every row of this depth, whichever {count} layers it is without, decodes {found['decode']:.2f} times and"
    yield f"reads prompts {found['prefill']:.2f} times as fast as the dense model (`results/costs.json`)."
    yield ""


def _table(rows: Sequence[dict[str, Any]], dense: float) -> Iterator[str]:
    """Methods from best to worst."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    own = {row["seed"]: row for row in by_name[OWN]}
    yield "| " + " | ".join(HEADINGS) + " |"
    yield "|" + "---|" * len(HEADINGS)
    for name, found in sorted(by_name.items(), key=lambda entry: _mean(entry[1], "perplexity")):
        perplexities = [row["perplexity"] for row in found]
        better = 1 - mean(own[row["seed"]]["perplexity"] for row in found) / mean(perplexities)
        cells = (
            (f"**{name}**" if name == OWN else name.removeprefix(ABLATION) + _unequal(found, own)) + _earlier(found),
            str(len(found)),
            f"{mean(perplexities):.2f}",
            f"{(max(perplexities) - min(perplexities)) / 2:.2f}" if len(found) > 1 else "–",
            f"{mean(perplexities) / dense - 1:+.1%}",
            "" if name == OWN else f"{better:.1%}",
            f"{_mean(found, 'bits_per_byte'):.3f}",
            f"{_mean(found, 'kl'):.3f}",
            f"{_mean(found, 'agreement'):.1%}",
            f"{_mean(found, 'continuation'):.1%}",
            f"{_mean(found, 'distinct'):.1%}",
            f"{_mean(found, 'selection_tokens') / 1000:.0f}",
            f"{_mean(found, 'training_tokens') / 1000:.0f}",
            f"{_mean(found, 'updates'):.0f}",
            f"{_mean(found, 'selection_flops') / 1e12:.2f}",
            f"{_mean(found, 'training_flops') / 1e12:.2f}",
            f"{median(row['selection_seconds'] + row['training_seconds'] for row in found) / 60:.1f}",
        )
        yield "| " + " | ".join(cells) + " |"


def _unequal(rows: Sequence[dict[str, Any]], own: dict[int, dict[str, Any]]) -> str:
    """What to say of trained rows that did not spend what ELDeR did: they were made for another budget."""

    def spent(row: dict[str, Any]) -> int:
        return int(row["selection_flops"] + row["training_flops"])

    more = max((spent(row) / spent(own[row["seed"]]) - 1 for row in rows if row["updates"]), key=abs, default=0.0)
    return f" (operations {more:+.0%})" if abs(more) > SAME else ""


def _earlier(rows: Sequence[dict[str, Any]]) -> str:
    """What to say where rows were made with other settings than a run would make them with now."""
    seeds = [row["seed"] for row in rows if _is_earlier(row)]
    if not seeds:
        return ""
    return " (earlier)" if len(seeds) == len(rows) else f" (earlier: seed {', '.join(map(str, sorted(seeds)))})"


def _is_earlier(row: dict[str, Any]) -> bool:
    recipe = RECIPES.get(row["name"])
    return recipe is None or not made_by(Row.model_validate(row), recipe)


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(mean(row[name] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
