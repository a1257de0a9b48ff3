"""What every supported architecture must pass: layers removed, saved, loaded by a fresh process, and generating.

`make test-architectures` runs it with every set of layers and writes docs/architectures.md; the test suite runs it with
two sets a family.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from elder_core import checkpoints
from elder_core.architectures import table
from elder_core.architectures.architecture import Architecture
from elder_core.architectures.refused import REFUSED
from elder_core.errors import UnsupportedArchitecture
from elder_core.inspection import inspect_checkpoint
from elder_core.manifest import Provenance
from elder_core.sizes import saved_sizes
from elder_core.spec import CalibrationSpec, JobSpec, LayerReport, ModelRef, ModelSummary, OutputSpec, Precision
from elder_core.surgery import bypassed, decoder_layers, layer_map, remove_layers
from elder_core.weight_files import checkpoint_bytes
from tests.unit.elder_core.families import LAYERS, VOCABULARY, build_tiny, tiny_config

Layers = tuple[int, ...]

# every second, both ends, drawn at random, all but one
SETS: tuple[Layers, ...] = ((0, 2, 4), (1, 3, 5), (0, 5), (1, 2, 4), (0, 1, 2, 3, 4), (1, 2, 3, 4, 5))
PROMPT = torch.arange(24)[None] * 7 % VOCABULARY  # three times the windows of the tiny models
NEW_TOKENS = 8

# Relative to the largest logit. Another order of sums is all that may differ: a mistake is as large as MATTERS.
SAME = 1e-4
SAME_CACHED = 5e-4
MATTERS = 2e-2


@dataclass(frozen=True)
class Result:
    """What was found of one family without some layers; `problems` by what they are of, none where all is well."""

    family: str
    removed: Layers
    problems: tuple[tuple[str, str], ...]


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """`[batch, seq, vocabulary]` of the prompt."""
    found: Tensor = model(PROMPT).logits
    return found


@torch.no_grad()
def generated(model: PreTrainedModel, **settings: Any) -> Tensor:
    """Logits of each new token `[step, vocabulary]`, decoding greedily."""
    found = model.generate(
        PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        **settings,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(found.logits)


def sets_of(family: str) -> tuple[list[Layers], list[Layers]]:
    """The sets of layers to try on the tiny model of `family`: those that its config can express, and the others.

    Besides `SETS` these are, for every kind of layer, all layers of that kind.
    """
    row, config = table.find(family), tiny_config(family)
    settings = config.to_dict()
    allowed: list[Layers] = []
    refused: list[Layers] = []
    for removed in dict.fromkeys((*SETS, *_kinds(row, config))):
        try:
            table.changes(row, settings, [layer for layer in range(LAYERS) if layer not in removed])
            allowed.append(removed)
        except UnsupportedArchitecture:
            refused.append(removed)
    return allowed, refused


def _kinds(row: Architecture, config: PreTrainedConfig) -> Iterable[Layers]:
    for name in dict.fromkeys(("layer_types", *row.per_layer)):
        entries = getattr(config, name, None)
        for kind in sorted({*map(str, entries)}) if isinstance(entries, list) else ():
            layers = tuple(layer for layer, entry in enumerate(entries) if str(entry) == kind)
            if len(layers) < LAYERS:
                yield layers


def accept(family: str, sets: Sequence[Layers], root: Path, tokenizer: Any) -> dict[str, Tensor]:
    """Save the tiny model of `family` without each of `sets` below `root`; return what is expected of the files.

    What can be said without loading them is said in `problems.json` beside them.
    """
    source = root / "sources" / family
    build_tiny(family).save_pretrained(source)
    tokenizer.save_pretrained(source)
    expected: dict[str, Tensor] = {}
    output = OutputSpec()
    for removed in sets:
        model = build_tiny(family)
        whole = logits(model)
        with bypassed(model, removed):
            wanted = logits(model)
        remove_layers(model, removed)
        folder = root / folder_name(family, removed)
        problems: dict[str, str] = {}
        if (wanted - whole).abs().max() < MATTERS * whole.abs().max():
            problems["the test"] = "the layers hardly matter"
        if (difference := distance(logits(model), wanted)) > SAME:
            problems["in memory"] = f"logits differ by {difference:.1e}"
        with_cache, without = (generated(model, use_cache=use_cache) for use_cache in (True, False))
        if (difference := distance(with_cache, without)) > SAME_CACHED:
            problems["cache"] = f"in memory it changes logits by {difference:.1e}"
        checkpoints.save(
            model,
            folder,
            source=source,
            provenance=provenance_of(removed),
            dtype=Precision.SAME,
            max_shard_bytes=output.max_shard_bytes,
        )
        info = inspect_checkpoint(folder)
        if (info.model_type, info.layers) != (family, LAYERS - len(removed)):
            problems["config"] = f"says {info.model_type} with {info.layers} layers"
        size = saved_sizes(inspect_checkpoint(source), output).without(removed)
        if size != checkpoint_bytes(folder):
            problems["size"] = f"{checkpoint_bytes(folder)} bytes, {size} were foretold"
        checkpoints.verify(folder)
        (folder / "problems.json").write_text(json.dumps(problems))
        expected[folder.name] = wanted
        assert len(decoder_layers(model)) == LAYERS - len(removed)
    return expected


def folder_name(family: str, removed: Layers) -> str:
    return f"{family}-{''.join(map(str, removed))}"


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number expected; infinite where one is no number."""
    difference = ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    return float("inf") if math.isnan(difference) else difference


# Loads each folder with nothing of this project, as a user would, and writes what it finds.
FRESH_PROCESS = """
import json, sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()
tensors, facts = {}, {}
for path in sys.argv[2:]:
    name = path.rsplit("/", 1)[1]
    model, loading = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    prompt = torch.arange(24)[None] * 7 % 257
    with torch.no_grad():
        tensors[name + " forward"] = model(prompt).logits
    for use_cache in (True, False):
        found = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, min_new_tokens=8,
                               do_sample=False, use_cache=use_cache, output_logits=True, return_dict_in_generate=True)
        tensors[f"{name} {use_cache}"] = torch.cat(found.logits)
    model.config.validate()
    facts[name] = {
        "loading": [str(key) for keys in loading.values() for key in keys],
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "class": type(model).__name__,
    }
save_file(tensors, sys.argv[1] + "/tensors.safetensors")
with open(sys.argv[1] + "/facts.json", "w") as stream:
    json.dump(facts, stream)
"""


def run(sets: dict[str, Sequence[Layers]], root: Path, tokenizer: Any) -> list[Result]:
    """Try every family (keys) without every set of layers (values), using files below `root`."""
    expected: dict[str, Tensor] = {}
    for family, layers in sets.items():
        expected |= accept(family, layers, root, tokenizer)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    folders = [str(root / name) for name in expected]
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, str(root), *folders], check=True, env=environment)
    found, facts = load_file(root / "tensors.safetensors"), json.loads((root / "facts.json").read_text())
    return [
        Result(family, removed, tuple(_problems(root / name, expected[name], found, facts[name]).items()))
        for family, layers in sets.items()
        for removed in layers
        for name in [folder_name(family, removed)]
    ]


def _problems(folder: Path, expected: Tensor, found: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, str]:
    problems: dict[str, str] = json.loads((folder / "problems.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    row = table.find(config["model_type"])
    if (difference := distance(found[f"{folder.name} forward"], expected)) > SAME:
        problems["reload"] = f"logits differ by {difference:.1e}"
    if (difference := distance(found[f"{folder.name} True"], found[f"{folder.name} False"])) > SAME_CACHED:
        problems["cache"] = f"it changes logits by {difference:.1e}"
    if facts["loading"] or facts["class"] != row.model_class:
        problems["config"] = f"loads as {facts['class']}, {facts['loading']}"
    if facts["tied"] != config.get("tie_word_embeddings", row.tied):
        problems["tied"] = f"embeddings are {'' if facts['tied'] else 'not '}tied"
    return problems


def provenance_of(
    removed: Sequence[int], *, layers: int = LAYERS, model_id: str = "local:tiny", **changes: Any
) -> Provenance:
    mapping = layer_map(layers, removed)
    return replace(
        Provenance(
            spec=JobSpec(
                model=ModelRef(id=model_id), layers=tuple(removed), seed=3, calibration=CalibrationSpec(seed=4)
            ),
            source=ModelSummary(
                id=model_id,
                revision="sha256:00",
                architecture="LlamaForCausalLM",
                layers=layers,
                parameters=1,
                dtype="bfloat16",
            ),
            layers=tuple(
                LayerReport(index=index, weight=index / 10, removed=index in removed, new_index=mapping.get(index))
                for index in range(layers)
            ),
            weight_label="gate",
            versions={"torch": "2", "elder": "1"},
        ),
        **changes,
    )


PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"
INTRODUCTION = """# Architectures

Written by `make test-architectures`, which removes layers from a tiny model of every supported family, built from its
own config class, and loads the result in a fresh process. Each line holds for every set of layers that it names:

- reload: the logits are those of the whole model with these layers bypassed;
- cache: generation with the cache is that without, past the sliding window too;
- config: it validates, every tensor is there and none too many, tied embeddings are still tied, and the size is what
  the plan foretold.

Sets that the config has no words for are refused, before any training, where a job names them: such as those that leave
no layer with attention, or a pattern that Jamba's two numbers cannot say. Where a method chooses layers the nearest set
that can be said is taken, and the report says so. A list with as many entries as there are layers, of which nothing is known,
is refused by its name. Methods that change weights to make up for layers
(ReplaceMe, Prune&Comp) need layers that add the outputs of two matrices to the hidden state: *compensation*.
"""

SEEING = """Layers go from the text part; what sees is not touched, and calibration is by text alone. With an image
among the tokens the saved model says what the whole one says with these layers bypassed, and generates the same with
the cache as without. Two sets of layers each, whether removed in memory or cut from the files.
"""


def page() -> str:
    """docs/architectures.md, for the case that every family passes."""
    rows = []
    for family, row in sorted(table.ARCHITECTURES.items()):
        allowed, refused = (" ".join("".join(map(str, layers)) for layers in sets) for sets in sets_of(family))
        compensation = "yes" if row.writers else "no"
        rows.append(f"| `{family}` | {allowed} | {refused} | equal | equal | valid | {compensation} |")
    seeing = [
        f"| `{family}` | {', '.join(f'`{text}`' for text in row.texts)} |"
        for family, row in sorted(table.MULTIMODAL.items())
    ]
    reasons = [f"| `{family}` | {reason} |" for family, reason in sorted(REFUSED.items())]
    return "\n".join(
        [
            INTRODUCTION,
            f"## Supported: {len(rows)}\n",
            "| family | removed, of layers 0 to 5 | refused | reload | cache | config | compensation |",
            "|---|---|---|---|---|---|---|",
            *rows,
            f"\n## Supported, with an image among the text: {len(seeing)}\n",
            SEEING,
            "| family | text part |",
            "|---|---|",
            *seeing,
            f"\n## Refused by name: {len(reasons)}\n",
            "| family | why |",
            "|---|---|",
            *reasons,
            "",
        ]
    )


def main() -> int:
    """Try every family without every set of layers, print a line for each, and write the page if all is well."""
    from tests.unit.elder_core.conftest import build_tokenizer  # which imports pytest

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    sets = {family: sets_of(family) for family in sorted(table.ARCHITECTURES)}
    with tempfile.TemporaryDirectory() as folder:
        results = run({family: allowed for family, (allowed, _) in sets.items()}, Path(folder), build_tokenizer())
    print(f"{'family':<20} {'removed':<8} {'reload':<8} {'cache':<8} config")
    for result in results:
        problems = dict(result.problems)
        reload, cache = ("differs" if name in problems else "equal" for name in ("reload", "cache"))
        config = "; ".join(f"{name}: {problem}" for name, problem in problems.items()) or "valid"
        print(f"{result.family:<20} {''.join(map(str, result.removed)):<8} {reload:<8} {cache:<8} {config}")
    for family, (_, refused) in sets.items():
        for removed in refused:
            print(f"{family:<20} {''.join(map(str, removed)):<8} refused: the config has no words for the rest")
    for family, reason in sorted(REFUSED.items()):
        print(f"{family:<20} refused by name: {reason}")
    failed = any(result.problems for result in results)
    if not failed:
        PAGE.write_text(page(), "utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
