"""What every supported architecture must pass: layers removed, saved, loaded by a fresh process, and generating.

`make test-architectures` runs it with every set of layers and writes docs/architectures.md; the test suite runs it with
two sets a family.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
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
from tests.unit.elder_core.fresh_process import Found, FreshProcess, fresh_process
from tests.unit.elder_core.multimodal import NEVER, build_multimodal, multimodal_config, with_image

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


@dataclass(frozen=True)
class Family:
    """What is tried: the text models of one row, or the models that see as well around those of one row.

    `build` takes a seed, and settings of the text model that the tiny one does not have otherwise.
    """

    name: str
    row: Architecture
    config: Callable[[], PreTrainedConfig]
    build: Callable[..., PreTrainedModel]
    given: Callable[[], dict[str, Tensor]]

    @property
    def sees(self) -> bool:
        """Whether there is an image in what is `given`."""
        return self.row.text_type is not None


def named(name: str) -> Family:
    """The family of the model_type `name`, or of two parted by a space: of a model that sees, and of its text part."""
    model_type, _, text_type = name.partition(" ")
    row = table.find(model_type, text_type or None)
    if model_type in table.MULTIMODAL:
        config, build = (
            partial(multimodal_config, model_type, text_type),
            partial(build_multimodal, model_type, text_type),
        )
        return Family(name, row, config, build, partial(with_image, model_type))
    return Family(name, row, partial(tiny_config, name), partial(build_tiny, name), lambda: {"input_ids": PROMPT})


SEEING = [f"{row.model_type} {text}" for row in table.MULTIMODAL.values() for text in row.texts]
FAMILIES = sorted([*table.ARCHITECTURES, *SEEING])
# with one family of text part each, for tests that would take too long with all
TRIED = sorted([*table.ARCHITECTURES, *(f"{row.model_type} {row.texts[0]}" for row in table.MULTIMODAL.values())])


@torch.no_grad()
def logits(model: PreTrainedModel, **given: Tensor) -> Tensor:
    """`[batch, seq, vocabulary]` of the prompt, or of what is given."""
    found: Tensor = model(**given or {"input_ids": PROMPT}).logits
    return found


@torch.no_grad()
def generated(model: PreTrainedModel, given: Mapping[str, Tensor] | None = None, **settings: Any) -> Tensor:
    """Logits of each new token `[step, vocabulary]`, decoding greedily."""
    given = given or {"input_ids": PROMPT}
    found = model.generate(
        **given,
        attention_mask=torch.ones_like(given["input_ids"]),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        suppress_tokens=NEVER if "pixel_values" in given else None,
        **settings,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(found.logits)


def sets_of(name: str) -> tuple[list[Layers], list[Layers]]:
    """The sets of layers to try on the tiny model of a family: those that its config can express, and the others.

    Besides `SETS` these are, for every kind of layer, all layers of that kind.
    """
    family = named(name)
    config = family.config().get_text_config()
    settings = config.to_dict()
    allowed: list[Layers] = []
    refused: list[Layers] = []
    for removed in dict.fromkeys((*SETS, *_kinds(family.row, config))):
        try:
            table.changes(family.row, settings, [layer for layer in range(LAYERS) if layer not in removed])
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


def run(sets: dict[str, Sequence[Layers]], root: Path, tokenizer: Any) -> list[Result]:
    """Try every family (keys) without every set of layers (values), using files below `root`."""
    with fresh_process() as fresh:
        return [
            Result(name, removed, tuple(problems.items()))
            for name, layers in sets.items()
            for source in [_saved(named(name), root / "sources" / name.replace(" ", "-"), tokenizer)]
            for removed in layers
            for problems in [_tried(named(name), removed, source, root, fresh)]
        ]


def _tried(family: Family, removed: Layers, source: Path, root: Path, fresh: FreshProcess) -> dict[str, str]:
    """See `accept`: what fails wholly is told in its line, beside those of the others."""
    try:
        return accept(family, removed, source, root, fresh)
    except Exception as error:
        return dict.fromkeys(("reload", "cache", "config"), f"{type(error).__name__}: {error}")


def _saved(family: Family, folder: Path, tokenizer: Any) -> Path:
    family.build().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def accept(family: Family, removed: Layers, source: Path, root: Path, fresh: FreshProcess) -> dict[str, str]:
    """What is wrong with the model `source` of `family` without the layers `removed`, by what it is of."""
    model, given = family.build(), family.given()
    whole = logits(model, **given)
    with bypassed(model, removed):
        wanted = logits(model, **given)
    problems: dict[str, str] = {}
    if not _matters(wanted, whole):
        problems["the test"] = "the layers hardly matter"
    if family.sees and not _matters(logits(model, **given | {"pixel_values": given["pixel_values"].flip(-1)}), whole):
        problems["the test"] = "the image hardly matters"
    remove_layers(model, removed)
    assert len(decoder_layers(model)) == LAYERS - len(removed)
    if (difference := distance(logits(model, **given), wanted)) > SAME:
        problems["in memory"] = f"logits differ by {difference:.1e}"
    with_cache, without = (generated(model, given, use_cache=use_cache) for use_cache in (True, False))
    if (difference := distance(with_cache, without)) > SAME_CACHED:
        problems["cache"] = f"in memory it changes logits by {difference:.1e}"
    folder = root / f"{family.name.replace(' ', '-')}-{''.join(map(str, removed))}"
    output = OutputSpec()
    checkpoints.save(
        model,
        folder,
        source=source,
        provenance=provenance_of(removed),
        dtype=Precision.SAME,
        max_shard_bytes=output.max_shard_bytes,
    )
    checkpoints.verify(folder)
    info = inspect_checkpoint(folder)
    if (info.row, info.layers) != (family.row, LAYERS - len(removed)):
        problems["config"] = f"says {info.model_type} with {info.layers} layers"
    size = saved_sizes(inspect_checkpoint(source), output).without(removed)
    if size != checkpoint_bytes(folder):
        problems["size"] = f"{checkpoint_bytes(folder)} bytes, {size} were foretold"
    found = fresh.load(folder, given, new_tokens=NEW_TOKENS, never=NEVER if family.sees else None)
    return problems | _reloaded(family, folder, wanted, found)


def _reloaded(family: Family, folder: Path, wanted: Tensor, found: Found) -> dict[str, str]:
    problems: dict[str, str] = {}
    config = json.loads((folder / "config.json").read_text())
    if (difference := max(distance(one, wanted) for one in found.logits)) > SAME:
        problems["reload"] = f"logits differ by {difference:.1e}"
    if (difference := distance(found.new[True], found.new[False])) > SAME_CACHED:
        problems["cache"] = f"it changes logits by {difference:.1e}"
    if found.complaints or found.model_class != family.row.model_class:
        problems["config"] = f"loads as {found.model_class}, {found.complaints}"
    if found.tied != family.row.ties(config, table.text_settings(family.row, config)):
        problems["tied"] = f"embeddings are {'' if found.tied else 'not '}tied"
    return problems


def _matters(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() >= MATTERS * other.abs().max())


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number expected; infinite where one is no number."""
    difference = ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    return float("inf") if math.isnan(difference) else difference


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
own config class, and loads the result in a fresh process; it is written last, once all has passed. Each line holds for
every set of layers that it names:

- reload: the logits are those of the whole model with these layers bypassed;
- cache: generation with the cache is that without, past the sliding window too;
- config: it validates, every tensor is there and none too many, tied embeddings are still tied, and the size is what
  the plan foretold.

Sets that the config has no words for are refused, before any training, where a job names them: such as those that leave
no layer with attention, or a pattern that Jamba's two numbers cannot say. Where a method chooses layers the nearest set
that can be said is taken, and the report says so. A list with an entry for each layer, of which nothing is known, is
refused by its name. Methods that change weights to make up for layers (ReplaceMe, Prune&Comp) need layers that add the
outputs of two matrices to the hidden state: *compensation*.
"""

SEEING_TOO = """Layers go from the text part; what sees is not touched, and calibration is by text alone. The same
holds of each line, with an image among the tokens.
"""
HEAD = """| family | removed, of layers 0 to 5 | refused | reload | cache | config | compensation |
|---|---|---|---|---|---|---|"""


def page() -> str:
    """docs/architectures.md, for the case that every family passes."""
    reasons = [f"| `{family}` | {reason} |" for family, reason in sorted(REFUSED.items())]
    return "\n".join(
        [
            INTRODUCTION,
            f"## Supported: {len(table.ARCHITECTURES)}\n",
            HEAD,
            *map(_line, sorted(table.ARCHITECTURES)),
            f"\n## Supported, with an image among the text: {len(table.MULTIMODAL)}\n",
            SEEING_TOO,
            HEAD.replace("family", "family, and that of its text part"),
            *map(_line, sorted(SEEING)),
            f"\n## Refused by name: {len(reasons)}\n",
            "| family | why |",
            "|---|---|",
            *reasons,
            "",
        ]
    )


def _line(name: str) -> str:
    allowed, refused = (" ".join("".join(map(str, layers)) for layers in sets) for sets in sets_of(name))
    compensation = "yes" if named(name).row.writers else "no"
    family = ", ".join(f"`{part}`" for part in name.split())
    return f"| {family} | {allowed} | {refused} | equal | equal | valid | {compensation} |"


def main() -> int:
    """Try every family without every set of layers, print a line for each, and write the page if all is well."""
    from tests.unit.elder_core.conftest import build_tokenizer  # which imports pytest

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    sets = {family: sets_of(family) for family in FAMILIES}
    with tempfile.TemporaryDirectory() as folder:
        results = run({family: allowed for family, (allowed, _) in sets.items()}, Path(folder), build_tokenizer())
    print(f"{'family':<28} {'removed':<8} {'reload':<8} {'cache':<8} config")
    for result in results:
        problems = dict(result.problems)
        reload, cache = ("differs" if name in problems else "equal" for name in ("reload", "cache"))
        config = "; ".join(f"{name}: {problem}" for name, problem in problems.items()) or "valid"
        print(f"{result.family:<28} {''.join(map(str, result.removed)):<8} {reload:<8} {cache:<8} {config}")
    for family, (_, refused) in sets.items():
        for removed in refused:
            print(f"{family:<28} {''.join(map(str, removed)):<8} refused: the config has no words for the rest")
    for family, reason in sorted(REFUSED.items()):
        print(f"{family:<28} refused by name: {reason}")
    failed = any(result.problems for result in results)
    if not failed:
        PAGE.write_text(page(), "utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
