"""How much each method keeps: every method on one model, at several depths, at the same floating-point operations.

For each depth and seed ELDeR runs first, with its default settings, which take the chosen layers out at once: it is
its own "prune, then distil". The rows called "ablation" have one ingredient of it replaced. What it spent on choosing
layers and on training is the budget of every trained row: a method that spends more on choosing has less left to
train with. All rows start from the same weights, learn from the same text, and are measured on documents that no
setting was chosen on (`validation.jsonl` beside the bundled model: it told how the model's own training went; who has
looked at it since is in docs/adr/0012). Operations are those of matrix products, attention's among them: all of them
while layers are chosen, which makes that take up to twice as long, and those of one update of each kind for training.

Rows are written as they come to `benchmarks/results/quality-MODEL.json`; rows that are there already are not run again,
so a run that was ended goes on. `docs/benchmarks.md` is made of these files by `benchmarks/quality_table.py`.

    python benchmarks/quality.py                                  # the whole table: hours on two cores
    python benchmarks/quality.py --ratios 0.5 --seeds 0 --rows "elder,sleb + distil"
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeGuard
from unittest import mock

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedModel

from elder_core import checkpoints, devices
from elder_core.calibration.windows import (
    EvaluationText,
    calibration_text,
    evaluation_text,
    leading_token,
    token_stream,
)
from elder_core.disk import file_sha256
from elder_core.evaluation.environment import environment
from elder_core.evaluation.quality import quality
from elder_core.inspection import Sources, read_texts, text_path
from elder_core.methods import training as training_module
from elder_core.methods.base import Context, Method, Selection
from elder_core.methods.baseline import Baseline
from elder_core.methods.losses import Teacher, frozen_copy
from elder_core.methods.mathematics import kl_divergence
from elder_core.methods.training import train
from elder_core.monitor import Monitor
from elder_core.parameters import (
    BUDGETS,
    Criterion,
    ElderParameters,
    EvoPressParameters,
    Gate,
    GateOptimizer,
    LastParameters,
    Loss,
    MethodParameters,
    PruneCompParameters,
    RandomParameters,
    ReplaceMeParameters,
    ShortenedLlamaParameters,
    ShortGptParameters,
    SlebParameters,
    TrainingParameters,
    UidlParameters,
    Weights,
)
from elder_core.registry import find_method
from elder_core.spec import Environment, ModelRef, TrainingPoint
from elder_core.surgery import decoder_layers, parameters_only_in, remove_layers

RESULTS = Path(__file__).parent / "results"
TEXT = Path(__file__).parents[1] / "examples" / "models" / "manuals-texts" / "validation.jsonl"
WINDOWS = 192
SCORED = 128  # sequences, for methods that score layers once: with 32 the sets changed with the seed (docs/log.md)
PROBES, PROMPT_TOKENS, NEW_TOKENS = 32, 64, 32

# Methods that choose, or make up for layers, otherwise since then; by time, for rows of then tell no version.
CHANGED = {name: datetime(2026, 11, 29, 11, 24, tzinfo=UTC) for name in ("evopress", "prune_comp")}

# The versions since which cross-entropy's default rate is a lower one: where no hidden states are matched, and where
# they are.
SLOWER_TEXT, SLOWER_TEXT_MATCHED = "0.3.7", "0.3.8"

Shape = Sequence[int]
Chosen = dict[str, "tuple[Method, Selection, Work, int]"]
"""By its settings, the method that chose, what it chose, what that took, and the tokens that it read."""

# What does not matter for which layers are chosen.
OF_TRAINING = {*BUDGETS, *ElderParameters.of_training}

PAPER = ElderParameters.of_the_paper()
PAPER_RESIDUAL = PAPER.model_copy(update={"gate": Gate.RESIDUAL})
PULLED = "residual gate; λ2 0.03"  # the best of those tried on this model: docs/log.md
PAPER_PULLED = PAPER_RESIDUAL.model_copy(update={"penalty": 0.03})

# One ingredient of the default at a time, replaced by what else it could be.
ABLATION = "ablation: "
WITHOUT: tuple[tuple[str, dict[str, object]], ...] = (
    ("hidden states not matched", {"matching": 0.0}),
    ("weights learnt for twice as long without a change", {"gate_patience": 16}),
    ("then a search", {"search_samples": 16, "gate_steps": 96}),  # as many as without one
    ("no learnt weights but such a search", {"gate_steps": 1, "search_samples": 16}),
    ("no penalty on the weights", {"gate_penalty": 0.0}),
    ("weights of all layers at once", {"gate_share": 1.0}),
    ("weights learnt anew after each layer", {"layers_per_round": 1}),
    ("weights by Adam", {"gate_optimizer": GateOptimizer.ADAM}),
    ("weights on the outputs", {"gate": Gate.OUTPUT}),
    ("weights against cross-entropy", {"gate_loss": Loss.CROSS_ENTROPY}),
    ("training by cross-entropy", {"loss": Loss.CROSS_ENTROPY}),
    ("8 sequences an update", {"batch_size": 8, "learning_rate": 1e-3}),
    ("low-rank training", {"weights": Weights.LORA}),
    ("layers faded out", {"anneal_fraction": 0.1, "penalty": 0.0}),
    ("layers penalised and faded out", {"anneal_fraction": 0.25}),
)


@dataclass(frozen=True)
class Recipe:
    """One row: which layers `chooser` removes, and whether training follows, by that method or as `then` says."""

    name: str
    chooser: MethodParameters
    trained: bool = False
    then: TrainingParameters | None = None


def recipes() -> tuple[Recipe, ...]:
    elder = ElderParameters()
    own = {"batch_size": elder.batch_size, "learning_rate": elder.learning_rate}
    distil, finetune = TrainingParameters(**own), TrainingParameters(loss=Loss.CROSS_ENTROPY, **own)
    matched = TrainingParameters(matching=elder.matching, **own)  # trained as ELDeR trains
    choosers: dict[str, MethodParameters] = {
        "random": RandomParameters(),
        "last": LastParameters(),
        "shortgpt": ShortGptParameters(scoring_samples=SCORED),
        "uidl": UidlParameters(scoring_samples=SCORED),
        "sleb": SlebParameters(),
        "sleb (8 sequences)": SlebParameters(scoring_samples=8),  # a third of its default
        "shortened-llama by perplexity": ShortenedLlamaParameters(),
        "shortened-llama by taylor": ShortenedLlamaParameters(criterion=Criterion.TAYLOR),
        "evopress": EvoPressParameters(),
        "replaceme": ReplaceMeParameters(),
        "prune&comp": PruneCompParameters(),
        "elder": ElderParameters(tokens=0, search_samples=16),  # as where no training is to follow
    }
    rows = [Recipe("elder", elder, trained=True)]
    rows += [Recipe(f"{name} untrained", chooser) for name, chooser in choosers.items()]
    rows += [Recipe("elder's layers untrained", elder)]  # those that it trains
    rows += [
        Recipe("elder's layers + fine-tune", elder, trained=True, then=finetune),
        Recipe("elder's layers + distil", elder, trained=True, then=distil),
    ]
    rows += [
        Recipe(f"{name} + fine-tune", choosers[name], trained=True, then=finetune) for name in ("sleb", "shortgpt")
    ]
    rows += [
        Recipe(f"{name} + distil", chooser, trained=True, then=distil)
        for name, chooser in choosers.items()
        if name != "elder"
    ]
    rows += [
        Recipe(f"{name} + ELDeR's training", choosers[name], trained=True, then=matched)
        for name in ("sleb", "sleb (8 sequences)", "shortgpt", "shortened-llama by perplexity", "prune&comp")
    ]
    for name, paper in (("output gate", PAPER), ("residual gate", PAPER_RESIDUAL), (PULLED, PAPER_PULLED)):
        once = paper.model_copy(update={"layers_per_round": None})
        rows += [
            Recipe(f"paper ({name})", paper, trained=True),
            Recipe(f"paper ({name}) one-shot", once, trained=True),
        ]
        if name != PULLED:  # without stage 2 its penalty makes no difference
            rows += [
                Recipe(f"paper ({name}) without stage 2", paper),
                Recipe(f"paper ({name}) one-shot; without stage 2", once),
            ]
    rows += [Recipe(f"{ABLATION}{what}", elder.model_copy(update=update), trained=True) for what, update in WITHOUT]
    return tuple(rows)


class Row(BaseModel):
    """One method at one depth with one seed. Operations, tokens and seconds are of choosing and of training.

    Operations of training are also those by which a method makes up for layers without it.

    `parameters` are those of the recipe; the budget of a trained row is in `updates`. Tokens of choosing are different
    ones, however often they were read; those of training are all that were read.
    """

    made_at: datetime
    machine: str
    version: str | None = None  # of elder; null in rows of before it was told
    name: str
    ratio: float
    seed: int
    removed: tuple[int, ...]
    parameters: dict[str, object]
    selection_flops: int
    training_flops: int
    selection_seconds: float
    training_seconds: float
    selection_tokens: int
    training_tokens: int
    updates: int
    perplexity: float
    bits_per_byte: float
    kl: float
    agreement: float
    continuation: float
    distinct: float


class Result(BaseModel):
    """The file. `dense` are the same measures of the model as it is; `environment` is that of the latest run."""

    command: str
    created_at: datetime
    model: str
    revision: str
    text: str
    text_sha256: str
    calibration_sha256: str | None = None  # null where a file is of before it was told
    windows: int
    environment: Environment
    dense: dict[str, float]
    rows: list[Row]


@dataclass(frozen=True)
class Bench:
    """A model, the text that methods learn from, and what it answers to the text that they are measured on."""

    dense: PreTrainedModel
    stream: Tensor
    leading: int | None
    text: EvaluationText
    logits: list[Tensor]
    continuations: Tensor
    length: int
    device: torch.device

    def context(self, seed: int) -> Context:
        """A fresh copy of the model, with the text in the order of `seed`."""
        windows = calibration_text(self.stream, self.length, leading=self.leading, seed=seed).learning
        return Context(copy.deepcopy(self.dense), windows, seed, self.device, Monitor())

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """Perplexity and bits per byte; KL and agreement of the likeliest next token with the dense model; the share
        of a greedy continuation before it leaves the dense model's; the share of distinct 3-grams in it.
        """
        found = quality(model, self.text.windows, self.text.bytes_per_token)
        kl, agreement = _distances(model, self.text.windows, self.logits)
        written = _continue(model, self.text.windows[:PROBES])
        same = (written == self.continuations).int().cumprod(1).float().mean()
        return {
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte,
            "kl": kl,
            "agreement": agreement,
            "continuation": float(same),
            "distinct": _distinct(written),
        }


@dataclass
class Work:
    """What was spent within `counted`."""

    flops: int = 0
    seconds: float = 0.0


def _attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch knows what attention costs on GPUs, and counts nothing for its kernels on CPUs.
ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@contextmanager
def counted() -> Iterator[Work]:
    work, started = Work(), time.monotonic()
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        yield work
    work.flops, work.seconds = counter.get_total_flops(), time.monotonic() - started


@contextmanager
def sequences_read(model: PreTrainedModel) -> Iterator[set[bytes]]:
    """The different sequences of token ids that `model` is given until the context is left."""
    seen: set[bytes] = set()

    def look(_: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.update(sequence.numpy().tobytes() for sequence in arguments[0].cpu())

    handle = model.get_input_embeddings().register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def main() -> int:
    options = _options()
    device = devices.choose(options.device)
    source = checkpoints.resolve(ModelRef(id=options.model), Sources(allow_paths=True))
    layers = source.info.layers
    if wrong := [ratio for ratio in options.ratios if not 0 < round(ratio * layers) < layers]:
        sys.exit(f"--ratios {wrong} would remove none of {layers} layers, or all; give shares in between.")
    bench = _bench(source, device, options)
    output = options.output or RESULTS / f"quality-{Path(options.model.rpartition(':')[2]).name}.json"
    result = _result(bench, source, options)
    known = recipes()
    if unknown := set(options.rows or ()) - {recipe.name for recipe in known}:
        sys.exit(f"There are no rows {sorted(unknown)}. Rows: {', '.join(recipe.name for recipe in known)}.")
    wanted = [recipe for recipe in known if not options.rows or recipe.name in {*options.rows, "elder"}]
    if output.exists():
        result.rows = _kept(Result.model_validate_json(output.read_bytes()), result, known, _machine(device))
    for seed in options.seeds:
        for ratio in options.ratios:
            for row in _rows(bench, wanted, ratio, seed, result.rows):  # rows that it makes again stay until then
                key = (row.name, row.ratio, row.seed)
                result.rows = [one for one in result.rows if (one.name, one.ratio, one.seed) != key] + [row]
                _write(result, output)
                print(f"{ratio:g} seed {seed}  {row.name:<36} {row.perplexity:8.3f}  KL {row.kl:.4f}", flush=True)
    return 0


def _kept(old: Result, new: Result, recipes: Sequence[Recipe], machine: str) -> list[Row]:
    """The rows of an earlier run, but for those of recipes that are no more."""
    for name in ("revision", "text_sha256", "calibration_sha256", "windows"):
        untold = name == "calibration_sha256" and old.calibration_sha256 is None
        if not untold and getattr(old, name) != getattr(new, name):
            sys.exit(f"The file to go on with has another {name}; give another --output or remove it.")
    arithmetic = {_arithmetic(row.machine) for row in old.rows} - {_arithmetic(machine)}
    if arithmetic:
        sys.exit(
            f"The file to go on with has rows made in {' and '.join(sorted(arithmetic))}, and here is {machine}; give "
            "another --output, or see benchmarks/README.md for how to compute as there."
        )
    known = {recipe.name for recipe in recipes}
    return [row for row in old.rows if row.name in known]


def made_by(row: Row, recipe: Recipe) -> bool:
    """Whether the row has the recipe's settings; those that came after it have their defaults, as all was before.

    What a method does with the same settings may have changed since: those that choose otherwise are told by time, and
    a default rate by the version.
    """
    if row.made_at < CHANGED.get(recipe.chooser.name, row.made_at):
        return False
    training = recipe.then or recipe.chooser
    if recipe.trained and training.loss is Loss.CROSS_ENTROPY and not (_fades(training) or training.learning_rate):
        since = SLOWER_TEXT_MATCHED if training.matching else SLOWER_TEXT
        if _release(row.version or "0") < _release(since):
            return False
    idle = set() if recipe.trained and recipe.then is None else OF_TRAINING
    return _same(row.parameters["chooser"], recipe.chooser, idle) and _same(row.parameters["then"], recipe.then, set())


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def _same(was: object, now: TrainingParameters | MethodParameters | None, idle: Set[str]) -> bool:
    if was is None or now is None:
        return was is now
    try:
        return _in_effect(type(now).model_validate(was), idle) == _in_effect(now, idle)
    except ValidationError:
        return False


def _in_effect(parameters: TrainingParameters | MethodParameters, idle: Set[str]) -> dict[str, object]:
    """Its settings, without those that are `idle`, and those of a search where there is none.

    What is left to the method counts as what it then is: rows have it in either way.
    """
    searches = not isinstance(parameters, ElderParameters) or parameters.searched
    settings = parameters.model_dump(exclude={*idle, *(() if searches else ElderParameters.of_a_search)})
    if isinstance(parameters, ElderParameters):
        settings |= {"gate_patience": parameters.patience(turn=1), "gate_steps": parameters.most_gate_updates(turn=1)}
    return settings


def _recorded(recipe: Recipe) -> dict[str, object]:
    then = None if recipe.then is None else recipe.then.model_dump(mode="json")
    return {"chooser": recipe.chooser.model_dump(mode="json"), "then": then}


def _rows(bench: Bench, recipes: Sequence[Recipe], ratio: float, seed: int, done: Sequence[Row]) -> Iterator[Row]:
    """Those of one depth and seed that are not there yet; ELDeR's is needed for the budget of the others."""
    there = {row.name: row for row in done if (row.ratio, row.seed) == (ratio, seed)}
    count = round(ratio * len(decoder_layers(bench.dense)))
    chosen: Chosen = {}
    for recipe in recipes:
        row = there.get(recipe.name)
        if row is not None and made_by(row, recipe) and _spent_alike(row, there["elder"]):
            continue
        budget = None
        if recipe.trained and recipe.name != "elder":
            elder = there["elder"]
            budget = elder.selection_flops + elder.training_flops
        there[recipe.name] = _run(bench, recipe, ratio, count, seed, budget, chosen)
        yield there[recipe.name]


def _spent_alike(row: Row, elder: Row) -> bool:
    """Whether a row of before spent ELDeR's present budget, but for a few updates."""
    if row.updates == 0:
        return True
    budget, one = elder.selection_flops + elder.training_flops, row.training_flops / row.updates
    return abs(row.selection_flops + row.training_flops - budget) <= max(0.01 * budget, one)


def _run(
    bench: Bench,
    recipe: Recipe,
    ratio: float,
    count: int,
    seed: int,
    budget: int | None,
    chosen: Chosen,
) -> Row:
    """One row. `chosen` holds the selections that were made already: equal methods choose once."""
    context = bench.context(seed)
    key = recipe.chooser.model_dump_json(exclude=OF_TRAINING)
    if key not in chosen:
        method = find_method(recipe.chooser.name).load()(recipe.chooser)
        with counted() as work, sequences_read(context.model) as read:
            selection = method.select(context, count)
        chosen[key] = method, selection, work, len(read) * bench.length
    method, selection, selecting, read_tokens = chosen[key]
    training, updates, tokens = Work(), 0, 0
    if recipe.trained:
        parameters = recipe.then or recipe.chooser
        if budget is not None:
            parameters = _within(bench, method, recipe, selection, budget - selecting.flops, seed)
        started = time.monotonic()
        points = _train(context, method, recipe, parameters, selection.removed)
        seconds = time.monotonic() - started
        training = Work(_cost(bench, method, recipe, parameters, selection, seed).of(points), seconds)
        updates, tokens = len(points), len(points) * parameters.batch_size * bench.length
    else:
        with counted() as training:
            _prepare(context, method, selection.removed)
    remove_layers(context.model, selection.removed)
    return Row(
        made_at=datetime.now(UTC),
        machine=_machine(bench.device),
        version=environment(bench.device).versions["elder"],
        name=recipe.name,
        ratio=ratio,
        seed=seed,
        removed=selection.removed,
        parameters=_recorded(recipe),
        selection_flops=selecting.flops,
        training_flops=training.flops,
        selection_seconds=selecting.seconds,
        training_seconds=training.seconds,
        selection_tokens=read_tokens,
        training_tokens=tokens,
        updates=updates,
        **bench.measure(context.model.eval()),
    )


def _machine(device: torch.device) -> str:
    """What computes, in a few words; the last is its arithmetic."""
    here = environment(device)
    return f"{here.cpu if device.type == 'cpu' else here.device}, {here.threads} threads, {here.arithmetic}"


def _arithmetic(machine: str) -> str:
    return machine.rpartition(", ")[2]


def _train(
    context: Context, method: Method, recipe: Recipe, parameters: TrainingParameters, removed: tuple[int, ...]
) -> tuple[TrainingPoint, ...]:
    """Train by the method itself, or without the layers from the first update on."""
    if recipe.then is None:
        return type(method)(parameters).regularize(context, removed)
    idle = parameters_only_in(context.model, removed)
    teacher = Teacher(frozen_copy(context.model, idle)) if parameters.taught else None
    _prepare(context, method, removed)
    return train(context, parameters, removed, teacher=teacher)


def _prepare(context: Context, method: Method, removed: tuple[int, ...]) -> None:
    """What the method that chose does to the remaining weights without training."""
    if isinstance(method, Baseline):
        method.compensate(context, removed)


@dataclass(frozen=True)
class Cost:
    """Operations of a training: once for what comes before it, and of an update with the removed layers or without."""

    once: int
    faded: int
    gone: int

    def of(self, points: Sequence[TrainingPoint]) -> int:
        faded = sum(bool(point.gate) for point in points)
        return self.once + faded * self.faded + (len(points) - faded) * self.gone

    def updates_within(self, flops: int, share: float) -> int:
        """As many updates as `flops` allow, where the layers are computed in so large a part of them; at least none."""
        return max(0, int((flops - self.once) / (share * self.faded + (1 - share) * self.gone)))


def _within(
    bench: Bench, method: Method, recipe: Recipe, selection: Selection, flops: int, seed: int
) -> TrainingParameters:
    """The training of `recipe` with as many updates as `flops` allow."""
    parameters = recipe.then or recipe.chooser
    share = 0.0
    if _fades(parameters):
        share = min(parameters.anneal_fraction or 1.0, 1 - parameters.recovery_fraction)
    cost = _cost(bench, method, recipe, parameters, selection, seed)
    return _updates(parameters, cost.updates_within(flops, share))


def _cost(
    bench: Bench, method: Method, recipe: Recipe, parameters: TrainingParameters, selection: Selection, seed: int
) -> Cost:
    """By one update and by two, so that what is done once is told apart."""

    def flops(updates: int, *, gone: bool) -> int:
        """Without the comparisons of weights, ten in a whole training, which one so short makes at every update."""
        some = _updates(parameters, updates)
        if isinstance(some, ElderParameters):
            some = some.model_copy(update={"anneal_fraction": None if gone else 0.0})
        context = bench.context(seed)
        with mock.patch.object(training_module, "KEPT_SHARE", math.inf), counted() as work:
            _train(context, method, recipe, some, selection.removed)
        return work.flops

    first, second = flops(1, gone=True), flops(2, gone=True)
    faded = flops(2, gone=False) - flops(1, gone=False) if _fades(parameters) else 0
    return Cost(once=2 * first - second, faded=faded, gone=second - first)


def _fades(parameters: TrainingParameters) -> TypeGuard[ElderParameters]:
    """Whether the layers are computed in part of the training."""
    return isinstance(parameters, ElderParameters) and parameters.anneal_fraction is not None


def _updates(parameters: TrainingParameters, updates: int) -> TrainingParameters:
    update: dict[str, object] = {"tokens": None, "seconds": None, "updates": updates}
    if isinstance(parameters, ElderParameters):
        update["gate_fraction"] = None  # what choosing spent is counted apart
    return parameters.model_copy(update=update)


# Measures ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _distances(model: PreTrainedModel, windows: Tensor, wanted: Sequence[Tensor]) -> tuple[float, float]:
    """Mean KL in nats from the dense model's `wanted` logits, and how often the likeliest token is the same one."""
    kl = agreement = 0.0
    for batch, dense in zip(torch.split(windows, 16), wanted, strict=True):
        logits = model(input_ids=batch.to(model.device), use_cache=False).logits
        kl += float(kl_divergence(logits, dense.to(logits.device))) * len(batch) / len(windows)
        same = logits.argmax(-1) == dense.to(logits.device).argmax(-1)
        agreement += float(same.float().mean()) * len(batch) / len(windows)
    return kl, agreement


@torch.inference_mode()
def _continue(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Greedy continuations `[prompts, NEW_TOKENS]` of the beginnings of `windows`."""
    prompts = windows[:, :PROMPT_TOKENS].to(model.device)
    written = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )
    continuations: Tensor = written[:, PROMPT_TOKENS:].cpu()
    return continuations


def _distinct(written: Tensor) -> float:
    """Share of distinct 3-grams, mean over texts `[texts, tokens]`; repetition lowers it."""
    grams = [{tuple(text[start : start + 3]) for start in range(len(text) - 2)} for text in written.tolist()]
    return sum(len(found) for found in grams) / (len(grams) * (written.shape[1] - 2))


# The file ----------------------------------------------------------------------------------------------------------


def _bench(source: checkpoints.Resolved, device: torch.device, options: argparse.Namespace) -> Bench:
    loaded = checkpoints.load(source, device)
    length = min(source.info.max_positions or 2048, 2048)
    sources = Sources(allow_paths=True)
    stream = token_stream(read_texts(text_path(options.calibration, sources)), loaded.tokenizer)
    text = evaluation_text(read_texts(Path(options.text)), loaded.tokenizer, length, samples=options.windows)
    with torch.inference_mode():
        logits = [
            loaded.model(input_ids=batch.to(device), use_cache=False).logits.cpu()
            for batch in torch.split(text.windows, 16)
        ]
    continuations = _continue(loaded.model, text.windows[:PROBES])
    return Bench(loaded.model, stream, leading_token(loaded.tokenizer), text, logits, continuations, length, device)


def _result(bench: Bench, source: checkpoints.Resolved, options: argparse.Namespace) -> Result:
    return Result(
        command=shlex.join(["python", "benchmarks/quality.py", *sys.argv[1:]]),
        created_at=datetime.now(UTC),
        model=options.model,
        revision=source.revision,
        text=Path(options.text).name,
        text_sha256=file_sha256(Path(options.text)),
        calibration_sha256=file_sha256(text_path(options.calibration, Sources(allow_paths=True))),
        windows=len(bench.text.windows),
        environment=environment(bench.device),
        dense=bench.measure(bench.dense),
        rows=[],
    )


def _write(result: Result, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    result.created_at = datetime.now(UTC)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(result.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    partial.replace(output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:manuals-16l", help="checkpoint folder or builtin:NAME")
    parser.add_argument("--calibration", default="builtin:manuals-calibration", help="text to learn from")
    parser.add_argument("--text", default=str(TEXT), help="text to measure on")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="sequences of it to use")
    parser.add_argument("--ratios", type=_numbers, default=[0.25, 0.375, 0.5], help="shares of the layers to remove")
    parser.add_argument("--seeds", type=_whole_numbers, default=[0, 1, 2])
    parser.add_argument("--rows", type=lambda text: text.split(","), help="names of rows to run; default: all")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, help="file to write or to go on with")
    return parser.parse_args()


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _whole_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
