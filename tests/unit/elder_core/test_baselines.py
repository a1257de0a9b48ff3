"""The methods that ELDeR is compared with: what they choose, on every architecture, and what they do to weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from elder_core.architectures import table
from elder_core.errors import Cancelled, NonFiniteLoss, UnsupportedArchitecture
from elder_core.methods import base, evopress
from elder_core.methods.base import Context
from elder_core.methods.baseline import Baseline, ScoringBaseline
from elder_core.methods.blocks import best_block, block_distances, boundary_states
from elder_core.methods.evopress import EvoPress, mutated
from elder_core.methods.losses import logits_of, loss_of
from elder_core.methods.mathematics import angular_distance, block_influence
from elder_core.methods.prefix import Reference
from elder_core.methods.prune_comp import PruneComp
from elder_core.methods.replaceme import ReplaceMe, blocks_of
from elder_core.methods.shortened_llama import ShortenedLlama, protection
from elder_core.methods.sleb import Sleb
from elder_core.methods.uidl import Uidl
from elder_core.monitor import Monitor
from elder_core.parameters import (
    Criterion,
    EvoPressParameters,
    Loss,
    PruneCompParameters,
    ReplaceMeParameters,
    ShortenedLlamaParameters,
    ShortGptParameters,
    SlebParameters,
    TrainingParameters,
    UidlParameters,
)
from elder_core.registry import METHODS
from elder_core.stream import scale_output, writers
from elder_core.surgery import bypassed, decoder_layers
from tests.unit.elder_core.conftest import LAYERS, MakeTiny
from tests.unit.elder_core.families import REPRESENTATIVE, each
from tests.unit.elder_core.test_methods import context_of, idle, state

BASELINES = [name for name, entry in METHODS.items() if issubclass(entry.load(), Baseline)]
COMPENSATING = {"replaceme", "prune_comp"}  # they need a stream that layers only add to
# those whose layers answer with no tuple, as the stand-ins for layers below do
WITH_PLAIN_STREAM = [name for name in REPRESENTATIVE if table.find(name).writers and table.find(name).returns is None]
THAT_SCORE = [name for name in BASELINES if "scoring_samples" in METHODS[name].parameters.model_fields]


def method_of(name: str, **given: object) -> Baseline[TrainingParameters]:
    """The baseline `name`, quick where its parameters allow."""
    entry = METHODS[name]
    quick: dict[str, object] = {"scoring_batch_size": 3, "generations": 8, "offspring": 6}
    usable = {key: value for key, value in quick.items() if key in entry.parameters.model_fields}
    return entry.load()(entry.parameters(**{**usable, **given}))  # type: ignore[return-value]


@torch.no_grad()
def loss_without(context: Context, removed: Collection[int]) -> float:
    """Mean cross-entropy of the context's windows with the layers `removed` out."""
    with bypassed(context.model, removed):
        return loss_of(context.model, context.windows, Loss.CROSS_ENTROPY, None).item()


# What holds for all of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", each(table.ARCHITECTURES))
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_works_on_every_architecture(make_tiny: MakeTiny, name: str, model_type: str) -> None:
    model = make_tiny(model_type)
    context, before, method = context_of(model), state(model), method_of(name)
    learning = [parameter.requires_grad for parameter in model.parameters()]  # not all of every model's do
    if name in COMPENSATING and not table.find(model_type).writers:
        with pytest.raises(UnsupportedArchitecture, match="cannot compensate"):
            method.select(context, 2)
        return
    found = method.select(context, 2)
    assert found.removed == tuple(sorted(set(found.removed)))
    assert len(found.removed) == 2
    assert found.weights is None or len(found.weights) == LAYERS
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(layer._forward_hooks or "forward" in layer.__dict__ for layer in decoder_layers(model))
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert all(parameter.grad is None for parameter in model.parameters())
    assert method.regularize(context, found.removed) == ()
    with bypassed(model, found.removed), torch.no_grad():
        assert logits_of(model, context.windows).isfinite().all()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("model_type", each(table.ARCHITECTURES))
def test_taylor_works_on_every_architecture(make_tiny: MakeTiny, model_type: str) -> None:
    found = method_of("shortened_llama", criterion=Criterion.TAYLOR).select(context_of(make_tiny(model_type)), 2)
    assert len(found.removed) == 2


@pytest.mark.parametrize("name", BASELINES)
def test_all_layers_but_one_can_be_removed(tiny_llama: PreTrainedModel, name: str) -> None:
    context = context_of(tiny_llama)
    found = method_of(name).select(context, LAYERS - 1)
    assert len(found.removed) == LAYERS - 1
    method_of(name).regularize(context, found.removed)


@pytest.mark.parametrize("name", THAT_SCORE)
def test_adjacent_layers_that_do_nothing_are_found(tiny_llama: PreTrainedModel, name: str) -> None:
    idle(tiny_llama, 2, 3)
    context = context_of(tiny_llama)
    # its own text, of which any other layer's removal makes a worse judge of it; of random text, a better one as often
    own = tiny_llama.generate(context.windows[:, :1], max_length=16, min_length=16, do_sample=False)
    assert method_of(name).select(dataclasses.replace(context, windows=own), 2).removed == (2, 3)


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_seed_gives_the_same_layers(tiny_llama: PreTrainedModel, name: str) -> None:
    assert method_of(name).select(context_of(tiny_llama), 3) == method_of(name).select(context_of(tiny_llama), 3)


@pytest.mark.parametrize(
    ("name", "given", "looks"),
    [
        ("shortgpt", {}, 1),
        ("uidl", {}, 1),
        ("replaceme", {}, 1),
        ("shortened_llama", {}, 1),
        ("prune_comp", {"layers_per_round": None}, 1),
        ("prune_comp", {"layers_per_round": 2}, 2),
        ("sleb", {}, 4),  # one for each layer that goes
    ],
)
def test_one_look_at_the_text_serves_all_depths(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, name: str, given: dict[str, object], looks: int
) -> None:
    alone = {count: method_of(name, **given).select(context_of(tiny_llama), count) for count in (1, 2, 3, 4)}
    looked: list[object] = []
    mean = ScoringBaseline.mean_over_windows
    monkeypatch.setattr(
        ScoringBaseline, "mean_over_windows", lambda *args, **named: (looked.append(args), mean(*args, **named))[1]
    )
    choose = method_of(name, **given).chooser(context_of(tiny_llama), (1, 2, 3, 4))
    assert {count: choose(count) for count in (3, 1, 4, 2)} == {count: alone[count] for count in (3, 1, 4, 2)}
    assert len(looked) == looks


def test_one_gradient_serves_all_depths(tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of("shortened_llama", criterion=Criterion.TAYLOR)
    alone = {count: method.select(context_of(tiny_llama), count) for count in (1, 2, 3)}
    gradient, asked = ShortenedLlama._taylor, []
    monkeypatch.setattr(ShortenedLlama, "_taylor", lambda *given: (asked.append(given), gradient(*given))[1])
    choose = method.chooser(context_of(tiny_llama), (1, 2, 3))
    assert {count: choose(count) for count in (1, 2, 3)} == alone
    assert len(asked) == 1


@pytest.mark.parametrize("name", BASELINES)
def test_what_makes_up_for_layers_can_be_tried(tiny_llama: PreTrainedModel, name: str) -> None:
    method, context, before = method_of(name), context_of(tiny_llama), state(tiny_llama)
    with method.made_up_for(context, (2, 3)):
        tried = state(tiny_llama)
    assert all(torch.equal(before[key], tensor) for key, tensor in tiny_llama.state_dict().items())
    method.compensate(context, (2, 3))
    assert all(torch.equal(tried[key], tensor) for key, tensor in tiny_llama.state_dict().items())
    same = all(torch.equal(tried[key], before[key]) for key in before)
    assert same == (name not in COMPENSATING)


@pytest.mark.parametrize("name", THAT_SCORE)
def test_steps_are_reported_and_a_cancelled_selection_leaves_nothing_behind(
    tiny_llama: PreTrainedModel, name: str
) -> None:
    before = state(tiny_llama)
    with pytest.raises(Cancelled):
        method_of(name).select(context_of(tiny_llama, monitor=Monitor(cancelled=lambda: True)), 2)
    steps: list[tuple[int, int]] = []
    monitor = Monitor(lambda progress: steps.append((progress.step, progress.total)))
    method_of(name).select(context_of(tiny_llama, monitor=monitor), 2)
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    assert all(torch.equal(before[key], tensor) for key, tensor in tiny_llama.state_dict().items())
    assert not any(module._forward_hooks for module in tiny_llama.modules())


@pytest.mark.parametrize("name", THAT_SCORE)
def test_a_model_that_is_no_number_is_refused(tiny_llama: PreTrainedModel, name: str) -> None:
    with torch.no_grad():
        tiny_llama.model.norm.weight.fill_(float("nan"))
        decoder_layers(tiny_llama)[0].mlp.up_proj.weight[0] = float("nan")
    with pytest.raises(NonFiniteLoss, match="the model's own loss"):
        method_of(name).select(context_of(tiny_llama), 2)


# Each of them ----------------------------------------------------------------------------------------------------


def test_sleb_is_greedy(tiny_llama: PreTrainedModel) -> None:
    context = context_of(tiny_llama)
    expected: list[int] = []
    rises: dict[int, float] = {}
    for _ in range(3):
        left = [layer for layer in range(LAYERS) if layer not in expected]
        before = loss_without(context, expected)
        rises |= {layer: loss_without(context, {*expected, layer}) - before for layer in left}
        expected.append(min(left, key=rises.__getitem__))
    found = Sleb(SlebParameters(scoring_batch_size=3)).select(context, 3)
    assert found.removed == tuple(sorted(expected))
    assert found.weights == pytest.approx([rises[layer] for layer in range(LAYERS)], abs=1e-4)


def test_sleb_scores_on_24_sequences_unless_told(tiny_llama: PreTrainedModel) -> None:
    context = context_of(tiny_llama, samples=30)
    assert len(Sleb(SlebParameters()).scoring_windows(context)) == 24
    assert len(Sleb(SlebParameters(scoring_samples=None)).scoring_windows(context)) == 30


def test_blocks_are_judged_by_their_input_and_output() -> None:
    states = [torch.tensor([[value]]) for value in (0.0, 5.0, 6.0, 8.0, 14.0)]  # of 4 layers
    distances = block_distances(states, 2, lambda x, y: (y - x).abs())
    assert distances.tolist() == [6, 3, 8]
    found = best_block(distances.tolist(), 2, "distance")
    assert found.removed == (1, 2)
    assert found.weights == (6, 3, 3, 8)
    assert best_block([1, 3, 2], 2, "distance", first=1).removed == (2, 3)
    assert best_block([1, 1, 1], 2, "distance").removed == (0, 1)


def test_boundary_states_are_what_passes_between_layers(tiny_llama: PreTrainedModel) -> None:
    ids = context_of(tiny_llama).windows
    states = boundary_states(tiny_llama, ids)
    assert len(states) == LAYERS + 1
    with torch.no_grad():
        assert torch.equal(states[0], tiny_llama.model.embed_tokens(ids))
    assert torch.equal(boundary_states(tiny_llama, ids, lambda state: state[:, -1])[3], states[3][:, -1])


@pytest.mark.parametrize("model_type", REPRESENTATIVE)
def test_the_last_layer_is_judged_before_the_final_norm(make_tiny: MakeTiny, model_type: str) -> None:
    """`hidden_states[-1]` is after it: another direction and length."""
    model = make_tiny(model_type)
    context, stack = context_of(model), decoder_layers(model)
    in_layers = {id(parameter) for parameter in stack.parameters()}
    for parameter in model.parameters():
        if parameter.ndim == 1 and id(parameter) not in in_layers:  # such as the final norm's, ones in a new model
            nn.init.uniform_(parameter, 0.2, 3, generator=torch.Generator().manual_seed(0))
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen["x"] = args[0] if args else kwargs["hidden_states"]
        seen["y"] = output[0] if isinstance(output, tuple) else output

    with torch.no_grad():
        after_norm = model(context.windows, output_hidden_states=True, use_cache=False).hidden_states[-1]
    stack[-1].register_forward_hook(keep, with_kwargs=True)
    states = boundary_states(model, context.windows)
    assert torch.equal(states[-2], seen["x"])
    assert torch.equal(states[-1], seen["y"])
    in_one_pass = ShortGptParameters(scoring_batch_size=len(context.windows))
    selection = METHODS["shortgpt"].load()(in_one_pass).select(context, 1)
    assert selection.weights is not None
    of_output, of_norm = (block_influence(seen["x"], y).item() for y in (seen["y"], after_norm))
    assert selection.weights[-1] == pytest.approx(of_output, rel=1e-5)
    assert of_norm != pytest.approx(of_output, rel=0.05)


def test_uidl_looks_at_the_last_token_of_all_windows(tiny_llama: PreTrainedModel) -> None:
    context = context_of(tiny_llama)
    last = [state[:, -1] for state in boundary_states(tiny_llama, context.windows)]
    expected = [angular_distance(last[start], last[start + 2]).mean().item() for start in range(LAYERS - 1)]
    found = Uidl(UidlParameters(scoring_batch_size=3)).select(context, 2)
    start = expected.index(min(expected))
    assert found.removed == (start, start + 1)
    assert found.weights is not None
    assert found.weights[start] == pytest.approx(expected[start], abs=1e-3)
    assert found.weights[0] == pytest.approx(expected[0], abs=1e-3)  # part of no other block


def test_shortened_llama_removes_at_once(tiny_llama: PreTrainedModel) -> None:
    context = context_of(tiny_llama)
    rises = [loss_without(context, {layer}) - loss_without(context, ()) for layer in range(LAYERS)]
    found = ShortenedLlama(ShortenedLlamaParameters()).select(context, 3)
    assert found.weights == pytest.approx(rises, abs=1e-4)
    assert found.removed == tuple(sorted(sorted(range(LAYERS), key=rises.__getitem__)[:3]))


@pytest.mark.parametrize("size", [3, 8])
def test_taylor_takes_the_gradient_of_all_windows(tiny_llama: PreTrainedModel, size: int) -> None:
    context = context_of(tiny_llama)
    loss_of(tiny_llama, context.windows, Loss.CROSS_ENTROPY, None).backward()  # type: ignore[no-untyped-call]
    expected = [
        sum((weight * weight.grad).abs().sum().item() for weight in layer.parameters() if weight.dim() > 1)
        for layer in decoder_layers(tiny_llama)
    ]
    parameters = ShortenedLlamaParameters(criterion=Criterion.TAYLOR, protect_first=1, scoring_batch_size=size)
    found = ShortenedLlama(parameters).select(context, 2)
    assert found.weights == pytest.approx(expected, rel=0.02)
    assert found.removed == tuple(sorted(sorted((1, 2, 3), key=expected.__getitem__)[:2]))
    assert context.monitor.warnings == []


def test_protected_layers_become_free_from_the_middle_outwards(tiny_llama: PreTrainedModel) -> None:
    assert protection(32, 8, 4, 2) == (4, 2)
    assert protection(8, 3, 4, 2) == (3, 2)
    assert protection(6, 2, 4, 2) == (2, 2)
    assert protection(6, 5, 4, 2) == (0, 1)
    context = context_of(tiny_llama)
    taylor = ShortenedLlamaParameters(criterion=Criterion.TAYLOR)
    assert ShortenedLlama(taylor).select(context, 2).removed == (2, 3)
    assert context.monitor.warnings == [
        "Keeping the first 4 and the last 2 of 6 layers would leave fewer than the 2 to remove: only the first 2 and "
        "the last 2 were kept."
    ]


def test_evopress_mutants_swap_one_to_three_layers() -> None:
    random = np.random.default_rng(0)
    parent = frozenset({1, 4, 6, 9})
    swaps = [len(parent - mutated(parent, 12, random)) for _ in range(300)]
    assert set(swaps) == {1, 2, 3}
    assert swaps.count(1) > swaps.count(2) > swaps.count(3)
    assert {len(mutated(parent, 12, random)) for _ in range(50)} == {4}
    assert mutated(frozenset({0, 1, 2, 3, 4}), 6, random) & {5}  # only one layer is kept, so one swap


def test_evopress_finds_the_best_set_of_a_small_model(tiny_llama: PreTrainedModel) -> None:
    context = context_of(tiny_llama)
    sets = [frozenset(layers) for layers in combinations(range(LAYERS), 3)]
    divergences = torch.tensor(list(Reference.of(tiny_llama, context.windows).kl_without(sets, like=())))
    found = EvoPress(EvoPressParameters(generations=30, offspring=6)).select(context, 3)
    assert found.removed == tuple(sorted(sets[int(divergences.argmin())]))
    assert found.weights is None
    assert f"{divergences.min():.2g}"[:3] in found.weight_label


@pytest.mark.parametrize("name", THAT_SCORE)
def test_settings_know_whether_their_method_makes_up_for_layers(name: str) -> None:
    entry = METHODS[name]
    compensates = entry.load().compensate is not Baseline.compensate  # type: ignore[attr-defined]
    assert entry.parameters.only_chooses is not compensates  # type: ignore[attr-defined]


def test_evopress_orders_sets_alike_by_a_batch_in_parts(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, search = EvoPress(EvoPressParameters(first_samples=4)), evopress._Search(LAYERS, np.random.default_rng(0))
    sets = [frozenset(layers) for layers in combinations(range(LAYERS), 3)]
    whole = method._promising(context_of(tiny_llama), search, sets, 0)
    last = Reference.of(tiny_llama, context_of(tiny_llama).batch(0, 4)[-1:])
    assert whole != [sets[place] for place in np.argsort(list(last.kl_without(sets, like=())), kind="stable")]
    monkeypatch.setattr(base, "LOGITS_BYTES", 4 * 16 * 257)  # one sequence
    parts = method._promising(context_of(tiny_llama), search, sets, 0)
    assert [sets.index(found) for found in parts[:5]] == [sets.index(found) for found in whole[:5]]


def test_blocks_of_neighbours() -> None:
    assert blocks_of((0, 1, 4, 6, 7, 8)) == [range(2), range(4, 5), range(6, 9)]


@pytest.mark.parametrize("model_type", WITH_PLAIN_STREAM)
def test_replaceme_makes_up_for_a_block_that_is_linear_in_the_mlp_before(make_tiny: MakeTiny, model_type: str) -> None:
    """Layer 2 adds nothing but a multiple of what layer 1's MLP added: that is folded exactly."""
    model = make_tiny(model_type)
    context = context_of(model, samples=16)
    mlp = writers(model, 1)[1]
    with _layer_adds(model, 2, of=mlp, times=-0.75), torch.no_grad():
        expected = model(input_ids=context.windows, use_cache=False).logits
        ReplaceMe(ReplaceMeParameters(ridge=1e-9)).compensate(context, (2,))
    with bypassed(model, (2,)), torch.no_grad():
        found = model(input_ids=context.windows, use_cache=False).logits
    scale = expected.abs().max()
    assert (found - expected).abs().max() < 0.05 * scale  # the fit is made in the device's precision


@pytest.mark.parametrize("model_type", WITH_PLAIN_STREAM)
def test_replaceme_brings_the_block_s_output_nearer(make_tiny: MakeTiny, model_type: str) -> None:
    model = make_tiny(model_type)
    context = context_of(model, samples=32)
    wanted = boundary_states(model, context.windows)[4].float()
    with bypassed(model, (2, 3)):
        before = (boundary_states(model, context.windows)[4] - wanted).square().mean()
    ReplaceMe(ReplaceMeParameters()).compensate(context, (2, 3))
    with bypassed(model, (2, 3)):
        after = (boundary_states(model, context.windows)[4] - wanted).square().mean()
    assert after < 0.95 * before


def test_replaceme_keeps_layer_0_and_a_strong_pull_changes_nothing(tiny_llama: PreTrainedModel) -> None:
    idle(tiny_llama, 0, 1)
    context = context_of(tiny_llama)
    assert 0 not in ReplaceMe(ReplaceMeParameters()).select(context, 2).removed
    before = state(tiny_llama)
    ReplaceMe(ReplaceMeParameters(ridge=1e6)).compensate(context, (3, 4))
    after = tiny_llama.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} <= {
        "model.layers.2.mlp.down_proj.weight"
    }
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_replaceme_says_where_nothing_can_make_up(tiny_llama: PreTrainedModel) -> None:
    context, before = context_of(tiny_llama), state(tiny_llama)
    ReplaceMe(ReplaceMeParameters()).compensate(context, (0, 1))
    assert "No layer stands before layer 0" in context.monitor.warnings[0]
    assert all(torch.equal(before[key], tensor) for key, tensor in tiny_llama.state_dict().items())


@pytest.mark.parametrize("model_type", WITH_PLAIN_STREAM)
def test_dividing_later_layers_is_multiplying_all_that_comes_before(make_tiny: MakeTiny, model_type: str) -> None:
    """The paper scales embedding and earlier layers by α; without the norms' ε the model is the same."""
    ours, papers = (make_tiny(model_type, tie_word_embeddings=False) for _ in range(2))
    alpha, removed = 1.7, 2
    for model in (ours, papers):
        for module in model.modules():
            for name in ("eps", "variance_epsilon"):
                if hasattr(module, name):
                    setattr(module, name, 1e-12)
    with torch.no_grad():
        head = papers.get_output_embeddings()
        for module in papers.modules():
            if isinstance(module, torch.nn.Embedding) and module is not head:
                module.weight.mul_(alpha)
    for layer in range(LAYERS):
        for module in writers(papers, layer) if layer < removed else ():
            scale_output(module, alpha)
        for module in writers(ours, layer) if layer > removed else ():
            scale_output(module, 1 / alpha)
    ids = context_of(ours).windows
    with torch.no_grad(), bypassed(ours, [removed]), bypassed(papers, [removed]):
        expected, found = (model(input_ids=ids, use_cache=False).logits for model in (papers, ours))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_prune_comp_gives_back_what_a_layer_only_multiplies(tiny_llama: PreTrainedModel) -> None:
    """A layer that makes the hidden state three times as large is made up for exactly."""
    context = context_of(tiny_llama)
    with _layer_adds(tiny_llama, 2, of=None, times=2.0):
        expected = logits_of(tiny_llama, context.windows).float()
        PruneComp(PruneCompParameters()).compensate(context, (2,))
    with bypassed(tiny_llama, (2,)), torch.no_grad():
        found = logits_of(tiny_llama, context.windows).float()
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("per_round", [1, 2, None])
def test_prune_comp_compensates_as_it_selected(tiny_llama: PreTrainedModel, per_round: int | None) -> None:
    method = PruneComp(PruneCompParameters(layers_per_round=per_round))
    context = context_of(tiny_llama)
    removed, _, scales = method._rounds(context, range(LAYERS), 3, {})
    assert method.select(context, 3).removed == tuple(sorted(removed))
    again, _, same = method._rounds(context, sorted(removed), 3, {})
    assert (again, same.tolist()) == (removed, scales.tolist())
    before = state(tiny_llama)
    other = PruneComp(method.parameters)  # as where the process that chose was ended
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "_rounds", None)  # what was found is remembered
        method.compensate(context, tuple(sorted(removed)))
    after = state(tiny_llama)
    tiny_llama.load_state_dict(before)
    other.compensate(context, tuple(sorted(removed)))
    assert all(torch.equal(after[key], tensor) for key, tensor in tiny_llama.state_dict().items())
    for layer in set(range(LAYERS)) - set(removed):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            key = f"model.layers.{layer}.{name}.weight"
            torch.testing.assert_close(tiny_llama.state_dict()[key], before[key] * scales[layer])


@pytest.mark.parametrize("name", ["replaceme", "prune_comp"])
def test_methods_that_change_weights_refuse_norms_after_the_sum(make_tiny: MakeTiny, name: str) -> None:
    model = make_tiny("opt", do_layer_norm_before=False)
    with pytest.raises(UnsupportedArchitecture, match=r"cannot compensate .* do_layer_norm_before to False"):
        method_of(name).select(context_of(model), 2)
    assert method_of("sleb").select(context_of(model), 2).removed


def test_random_layers_follow_the_seed(tiny_llama: PreTrainedModel) -> None:
    drawn = set()
    for seed in range(20):
        context = dataclasses.replace(context_of(tiny_llama), seed=seed)
        drawn.add(method_of("random").select(context, 2).removed)
    assert len(drawn) > 5
    assert method_of("last").select(context, 2).removed == (4, 5)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_with_a_budget_trains_after_compensating(tiny_llama: PreTrainedModel, name: str) -> None:
    points = method_of(name, updates=2).regularize(context_of(tiny_llama), (2, 3))
    assert [point.update for point in points] == [1, 2]


@contextmanager
def _layer_adds(model: PreTrainedModel, layer: int, *, of: torch.nn.Module | None, times: float) -> Iterator[None]:
    """Let `layer` add nothing but `times` the last output of the module `of`, or its own input."""
    seen: list[Tensor] = []

    def add(_: torch.nn.Module, arguments: tuple[Tensor, ...], given: dict[str, Tensor], __: object) -> Tensor:
        x = arguments[0] if arguments else given["hidden_states"]
        return x + times * (seen[-1].view_as(x).to(x.dtype) if of else x)

    handles = [decoder_layers(model)[layer].register_forward_hook(add, with_kwargs=True)]
    if of:
        handles.append(of.register_forward_hook(lambda *call: seen.append(call[-1])))
    yield
    for handle in handles:
        handle.remove()
