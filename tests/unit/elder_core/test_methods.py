"""What the methods choose and how they train, on tiny models."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from itertools import count, pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.errors import Cancelled, NonFiniteLoss
from elder_core.methods import base, training
from elder_core.methods.base import Context, Method, Selection
from elder_core.methods.elder import selection
from elder_core.methods.elder.method import Elder
from elder_core.methods.elder.search import Scores, refine
from elder_core.methods.mathematics import ranking
from elder_core.methods.prefix import Prefix
from elder_core.methods.shortgpt import ShortGpt
from elder_core.monitor import Monitor
from elder_core.parameters import (
    Criterion,
    ElderParameters,
    GateOptimizer,
    Loss,
    Norm,
    ReplaceMeParameters,
    ShortenedLlamaParameters,
    ShortGptParameters,
    TrainingParameters,
    Weights,
)
from elder_core.registry import METHODS
from elder_core.surgery import bypassed, decoder_layers

QUICK = ElderParameters(gate_steps=6, gate_patience=0, gate_batch_size=2, updates=6, batch_size=2)
SEARCHED = QUICK.model_copy(update={"search_samples": 8})
LONG = QUICK.model_copy(update={"gate_steps": 40, "gate_learning_rate": 0.3, "gate_penalty": 0.2})
PAPER = ElderParameters.of_the_paper().model_copy(
    update={"gate_steps": 6, "gate_batch_size": 2, "tokens": None, "updates": 6}
)


def context_of(model: PreTrainedModel, *, samples: int = 8, monitor: Monitor | None = None) -> Context:
    windows = torch.randint(1, 257, (samples, 16), generator=torch.Generator().manual_seed(0))
    return Context(model=model, windows=windows, seed=0, device=torch.device("cpu"), monitor=monitor or Monitor())


def path_of(found: Selection) -> Tensor:
    return torch.tensor([point.weights for point in found.gate_path])


def refined(model: PreTrainedModel, parameters: ElderParameters, ranked: list[int], count: int) -> Collection[int]:
    return refine(Scores(context_of(model), parameters), ranked, count)


def idle(model: PreTrainedModel, *indices: int) -> None:
    """Make layers of a Llama the identity by their weights: what selection should find."""
    for index in indices:
        layer = decoder_layers(model)[index]
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


METHODS_TO_TEST = [
    pytest.param(ShortGpt(ShortGptParameters(scoring_batch_size=3)), id="shortgpt"),
    pytest.param(Elder(QUICK), id="elder"),
    pytest.param(Elder(QUICK.model_copy(update={"layers_per_round": 1})), id="elder-iterative"),
    pytest.param(Elder(PAPER), id="elder-paper"),
]


@pytest.mark.parametrize("method", METHODS_TO_TEST)
def test_selection_leaves_the_model_as_it_was(tiny_llama: PreTrainedModel, method: Method) -> None:
    before = state(tiny_llama)
    found = method.select(context_of(tiny_llama), 2)
    assert len(found.removed) == 2
    assert list(found.removed) == sorted(set(found.removed))
    assert found.weights is not None
    assert len(found.weights) == 6
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_llama.state_dict().items())
    assert all(parameter.requires_grad for parameter in tiny_llama.parameters())
    assert not any(layer._forward_hooks for layer in decoder_layers(tiny_llama))


@pytest.mark.parametrize(
    "method",
    [
        ShortGpt(ShortGptParameters()),
        Elder(LONG),
        Elder(LONG.model_copy(update={"layers_per_round": 1})),
        Elder(LONG.model_copy(update={"gate_share": 1.0})),
    ],
)
def test_layers_that_do_nothing_are_found(tiny_llama: PreTrainedModel, method: Method) -> None:
    idle(tiny_llama, 1, 4)
    assert method.select(context_of(tiny_llama), 2).removed == (1, 4)


@pytest.mark.parametrize("share", [1.0, 0.7, 0.5, 0.3, 0.01])
def test_all_layers_are_dealt_before_any_comes_again(share: float) -> None:
    active = [0, 2, 3, 5, 7]
    hands = ElderParameters(gate_share=share).turn(5)
    assert hands == {1.0: 1, 0.7: 2, 0.5: 2, 0.3: 4, 0.01: 5}[share]
    for deal in range(3):
        seen = [
            layer for hand in range(hands) for layer in selection.dealt(active, hands, seed=1, step=deal * hands + hand)
        ]
        assert sorted(seen) == active


@pytest.mark.parametrize("method", METHODS_TO_TEST)
def test_the_same_seed_gives_the_same_run(tiny_llama: PreTrainedModel, method: Method) -> None:
    twin = copy.deepcopy(tiny_llama)
    results = []
    for model in (tiny_llama, twin):
        found = method.select(context_of(model), 2)
        results.append((found, method.regularize(context_of(model), found.removed)))
    assert results[0] == results[1]
    assert all(torch.equal(a, b) for a, b in zip(tiny_llama.parameters(), twin.parameters(), strict=True))


def test_block_influence_is_the_mean_over_all_windows(tiny_llama: PreTrainedModel) -> None:
    weights = [
        ShortGpt(ShortGptParameters(scoring_batch_size=size)).select(context_of(tiny_llama), 1).weights
        for size in (1, 3, 8)
    ]
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)
    assert weights[0] == pytest.approx(weights[2], abs=1e-6)


def test_iterative_selection_learns_again_for_every_round(tiny_llama: PreTrainedModel) -> None:
    rounds = Elder(QUICK.model_copy(update={"layers_per_round": 2})).select(context_of(tiny_llama), 3)
    assert [point.round for point in rounds.gate_path] == [0] * 6 + [1] * 6
    last = rounds.gate_path[-1].weights
    assert [layer for layer, weight in enumerate(last) if weight == 0 and layer in rounds.removed] != []


def test_all_depths_have_the_same_part_of_a_budget_for_each_round(tiny_llama: PreTrainedModel) -> None:
    parameters = QUICK.model_copy(update={"layers_per_round": 1, "updates": 40, "gate_fraction": 0.3})
    chooser = Elder(parameters).chooser(context_of(tiny_llama), (1, 2, 4))
    paths = {count: chooser(count).gate_path for count in (1, 2, 4)}
    assert {count: len(path) for count, path in paths.items()} == {1: 3, 2: 6, 4: 12}
    assert paths[1] == paths[4][:3]
    assert paths[2] == paths[4][:6]


@pytest.mark.parametrize("per_round", [1, 2])
def test_deeper_selections_begin_with_the_rounds_of_shallower_ones(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, per_round: int
) -> None:
    parameters = QUICK.model_copy(update={"layers_per_round": per_round})
    alone = {count: Elder(parameters).select(context_of(tiny_llama), count) for count in (1, 2, 3, 4)}
    learnt: list[int] = []
    learn = selection.learn

    def noted(*given: object, **more: object) -> object:
        learnt.append(1)
        return learn(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "learn", noted)
    chooser = Elder(parameters).chooser(context_of(tiny_llama), (1, 2, 3, 4))
    assert {count: chooser(count) for count in (4, 1, 3, 2)} == alone
    # in rounds of two: two whole rounds, and half a round for 1 and for 3
    assert len(learnt) == 4


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[frozenset[int], bytes]]:
    """The layers left out and the sequences of every pass that the search makes; none asks for all positions."""
    passes: list[tuple[frozenset[int], bytes]] = []
    logits = Prefix.logits

    def noted(self: Prefix, removed: Collection[int], positions: Tensor) -> Tensor:
        passes.append((frozenset(removed), self._ids.numpy().tobytes()))
        found = logits(self, removed, positions)
        assert found.shape[1] < self._ids.shape[1]
        return found

    monkeypatch.setattr(Prefix, "logits", noted)
    return passes


def test_one_search_remembers_its_scores_for_every_depth(
    tiny_llama: PreTrainedModel, searched: list[tuple[frozenset[int], bytes]]
) -> None:
    alone = {count: Elder(SEARCHED).select(context_of(tiny_llama), count).removed for count in (1, 2, 3)}
    searched.clear()
    chooser = Elder(SEARCHED).chooser(context_of(tiny_llama), (1, 2, 3))
    assert {count: chooser(count).removed for count in (1, 2, 3)} == alone
    assert len(searched) == len(set(searched)) > 0, "one set on one batch twice"


def test_learning_computes_no_gradient_of_the_models_weights(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_of = selection.loss_of
    learning: list[bool] = []

    def noted(model: PreTrainedModel, *given: object) -> Tensor:
        learning.extend(parameter.requires_grad for parameter in model.parameters())
        return loss_of(model, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "loss_of", noted)
    for parameters in (QUICK, PAPER):
        Elder(parameters).select(context_of(tiny_llama), 2)
    assert learning
    assert not any(learning)
    assert all(parameter.grad is None for parameter in tiny_llama.parameters())


def _poisoned(monkeypatch: pytest.MonkeyPatch, *updates: int) -> None:
    """Make the loss of these updates of the layer weights, counted from 1, no number."""
    loss_of, numbers = selection.loss_of, count(1)

    def spoilt(*given: object) -> Tensor:
        return loss_of(*given) * (torch.nan if next(numbers) in updates else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "loss_of", spoilt)


ALL_AT_ONCE = QUICK.model_copy(update={"gate_share": 1.0})


@pytest.mark.parametrize("parameters", [ALL_AT_ONCE, PAPER.model_copy(update={"layers_per_round": None})])
def test_an_update_of_the_weights_that_broke_the_loss_is_taken_back(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, parameters: ElderParameters
) -> None:
    twin = Elder(parameters).select(context_of(tiny_llama), 2).gate_path
    _poisoned(monkeypatch, 4)
    context = context_of(tiny_llama)
    path = Elder(parameters).select(context, 2).gate_path
    assert [point.step for point in path] == [1, 2, 3, 4], "six losses: one taken back, one that was no number"
    assert path[:2] == twin[:2]
    assert path[2].weights != twin[2].weights
    (warning,) = [warning for warning in context.monitor.warnings if "layer weights became" in warning]
    assert "nan at update 4: the weights were put back to those after 2 updates" in warning
    assert "0.5 times the rate" in warning


@pytest.mark.parametrize(("poisoned", "named"), [((1,), 1), ((2, 3, 4, 5), 3), ((3, 4, 5, 6), 5), ((4, 6, 8, 10), 10)])
def test_weights_that_break_the_loss_again_and_again_end_the_run(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, poisoned: tuple[int, ...], named: int
) -> None:
    _poisoned(monkeypatch, *poisoned)
    with pytest.raises(NonFiniteLoss, match=f"layer weights became nan at update {named}; lower gate_learning_rate"):
        Elder(ALL_AT_ONCE.model_copy(update={"gate_steps": 12})).select(context_of(tiny_llama), 2)


def test_what_is_taken_back_is_the_update_of_the_weights_in_effect(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer's weight breaks the loss wherever it is below 0.8: half of the layers are weighted at a time."""
    loss_of, gated = selection.loss_of, selection.gated
    in_effect: list[tuple[Tensor, list[int]]] = []

    def noted(layers: object, weights: Tensor, form: object, chosen: list[int]) -> object:
        in_effect.append((weights, chosen))
        return gated(layers, weights, form, chosen)  # type: ignore[arg-type]

    def spoilt(*given: object) -> Tensor:
        weights, chosen = in_effect[-1]
        return loss_of(*given) * (torch.nan if 3 in chosen and weights[3] < 0.8 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "gated", noted)
    monkeypatch.setattr(selection, "loss_of", spoilt)
    context = context_of(tiny_llama)
    parameters = QUICK.model_copy(update={"gate_steps": 12, "gate_penalty": 0.15})
    path = Elder(parameters).select(context, 2).gate_path
    assert path[-1].weights[3] >= 0.7
    assert any("the weights were put back" in warning for warning in context.monitor.warnings)


def test_where_no_update_lasts_the_run_ends(tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _poisoned(monkeypatch, 2)
    with pytest.raises(NonFiniteLoss, match="No update of the layer weights was left, out of 2"):
        Elder(ALL_AT_ONCE.model_copy(update={"gate_steps": 2})).select(context_of(tiny_llama), 2)


def test_a_gradient_that_is_no_number_leaves_the_weights(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, numbers = selection.proximal_step, count(1)
    monkeypatch.setattr(
        selection, "proximal_step", lambda *a, **k: step(*a, **k) * (torch.nan if next(numbers) == 6 else 1.0)
    )
    context = context_of(tiny_llama)
    found = Elder(QUICK).select(context, 2)
    assert found.weights is not None
    assert torch.tensor(found.weights).isfinite().all()
    assert len(found.gate_path) == 5
    assert any("The layer weights became nan at update 6" in warning for warning in context.monitor.warnings)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        (ElderParameters(penalty=5.0, norm=Norm.L1), "penalty and norm had no effect: the chosen layers are gone"),
        (
            ElderParameters(tokens=0, penalty=5.0, matching=1.0),
            "matching and penalty had no effect: the budget of training is 0. Give tokens, updates or seconds, or "
            "leave them out.",
        ),
        (ElderParameters(lora_rank=4), "lora_rank had no effect: weights is full. Give lora, or leave it out."),
        (
            ElderParameters(layers_per_round=1, search_samples=8),
            "search_samples had no effect: no search follows where layers_per_round is given.",
        ),
        (ElderParameters(search_border=4), "search_border had no effect: no search follows. Give search_samples,"),
        (
            ElderParameters(tokens=0, search_samples=4, search_width=0),
            "search_samples had no effect: no search follows where search_width is 0.",
        ),
        (
            ElderParameters(search_width=0, search_border=4),
            "search_border had no effect: no search follows where search_width is 0. Give that as 1 or more,",
        ),
        (
            ShortenedLlamaParameters(protect_last=3),
            "protect_last had no effect: criterion is perplexity. Give taylor, or leave it out.",
        ),
        (ShortGptParameters(loss=Loss.CROSS_ENTROPY), "loss had no effect: the budget of training is 0."),
        (ElderParameters(anneal_fraction=0.0, penalty=0.0, norm=Norm.L1), "norm had no effect: penalty is 0."),
        (
            ElderParameters(anneal_fraction=0.5, recovery_fraction=0.4),
            "recovery_fraction had no effect: the layers have faded by then. Give more than what anneal_fraction",
        ),
    ],
)
def test_settings_without_effect_are_told(parameters: TrainingParameters, told: str) -> None:
    (sentence,) = parameters.without_effect(layers_named=False)
    assert sentence.startswith(told)


def test_settings_of_a_choice_that_the_job_makes_itself_are_told() -> None:
    parameters = ElderParameters(gate_steps=9, gate_fraction=0.1, search_width=2)
    (sentence,) = parameters.without_effect(layers_named=True)
    assert sentence.startswith("gate_steps and gate_fraction and search_width had no effect: the job names its layers")
    named = ShortenedLlamaParameters(criterion=Criterion.TAYLOR, protect_last=3)
    assert list(named.without_effect(layers_named=True)) == [
        "criterion and protect_last had no effect: the job names its layers. Give a ratio instead, or leave them out."
    ]
    assert not list(ReplaceMeParameters(ridge=1.0).without_effect(layers_named=True))
    assert list(parameters.without_effect(layers_named=False)) == [
        "search_width had no effect: no search follows. Give search_samples, or leave it out."
    ]


@pytest.mark.parametrize(
    "parameters",
    [
        ElderParameters(),
        ElderParameters(tokens=0),
        ElderParameters(tokens=0, search_samples=4, search_border=4),
        ElderParameters(penalty=5.0, anneal_fraction=0.0),
        ElderParameters(weights=Weights.LORA, lora_rank=4),
        PAPER,
        ShortenedLlamaParameters(criterion=Criterion.TAYLOR, protect_last=3),
        ShortGptParameters(updates=3, loss=Loss.CROSS_ENTROPY),
    ],
)
def test_nothing_is_said_of_settings_that_have_one(parameters: TrainingParameters) -> None:
    assert not list(parameters.without_effect(layers_named=False))


def test_learning_that_its_steps_end_before_it_is_settled_is_told(tiny_llama: PreTrainedModel) -> None:
    context = context_of(tiny_llama, samples=64)
    Elder(QUICK.model_copy(update={"gate_patience": 50})).select(context, 2)
    (warning,) = context.monitor.warnings
    assert warning.startswith("gate_steps 6 ended the learning of layer weights before it was settled")


@pytest.mark.parametrize(
    ("update", "named"),
    [
        ({"gate_steps": 3}, "gate_steps 3 ended the learning of layer weights after 3 updates"),
        ({"gate_patience": 1, "gate_penalty": 0.0}, "gate_patience 1 ended the learning of layer weights after"),
    ],
)
def test_layers_that_were_never_weighted_are_told(
    tiny_llama: PreTrainedModel, update: dict[str, object], named: str
) -> None:
    parameters = QUICK.model_copy(update={"gate_share": 0.1, **update})
    context = context_of(tiny_llama, samples=64)
    Elder(parameters.model_copy(update={"gate_steps": 8, "gate_patience": 0})).select(context, 2)
    assert context.monitor.warnings == [], "every layer had its turn"
    Elder(parameters).select(context, 2)
    (warning,) = context.monitor.warnings
    assert warning.startswith(named)
    assert "some were never weighted" in warning


@pytest.mark.parametrize("optimizer", list(GateOptimizer))
def test_weights_learnt_from_a_batch_in_parts_are_the_same(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, optimizer: GateOptimizer
) -> None:
    adam = {"gate_penalty": 0.0} if optimizer is GateOptimizer.ADAM else {}  # beside which gradients are small
    parameters = QUICK.model_copy(update={"gate_batch_size": 4, "gate_optimizer": optimizer, **adam})
    whole = Elder(parameters).select(context_of(tiny_llama), 2)
    monkeypatch.setattr(base, "LOGITS_BYTES", 4 * 16 * 257)  # one sequence
    parts = Elder(parameters).select(context_of(tiny_llama), 2)
    assert any(abs(weight - 1) > 0.01 for weight in whole.weights or ())
    torch.testing.assert_close(path_of(parts), path_of(whole), atol=1e-3, rtol=0)


def test_layers_that_a_search_exchanged_are_told_of(tiny_llama: PreTrainedModel) -> None:
    idle(tiny_llama, 1, 4)
    assert Elder(LONG).select(context_of(tiny_llama), 2).weight_label == "learnt weight, 1 kept to 0 removed"
    blind = SEARCHED.model_copy(update={"gate_learning_rate": 1e-6})  # its ranking is that of the first gradients
    found = Elder(blind).select(context_of(tiny_llama), 2)
    assert found.removed == (1, 4)
    expected = len({1, 4} - set(ranking(torch.tensor(found.weights), path_of(found))[:2]))
    assert expected
    assert found.weight_label == f"learnt weight, 1 kept to 0 removed; a search then exchanged {expected}"


def test_weights_stay_within_0_and_1_and_the_first_step_only_shrinks(tiny_llama: PreTrainedModel) -> None:
    path = Elder(QUICK.model_copy(update={"gate_share": 1.0})).select(context_of(tiny_llama), 2).gate_path
    shrunk = 1 - QUICK.gate_rate * QUICK.gate_penalty
    assert path[0].weights == pytest.approx([shrunk] * 6, abs=1e-4)  # KL has no slope where nothing is gated
    assert path[0].loss == pytest.approx(0, abs=1e-6)
    assert all(0 <= weight <= 1 for point in path for weight in point.weights)


def test_regularising_teaches_the_model_to_do_without(tiny_llama: PreTrainedModel) -> None:
    removed = (2, 4)
    context = context_of(tiny_llama)
    dense = copy.deepcopy(tiny_llama)
    before = _distance(dense, tiny_llama, context.windows, removed)
    update = {"updates": 30, "batch_size": 4, "learning_rate": 3e-3, "anneal_fraction": 0.25}
    parameters = QUICK.model_copy(update=update)
    points = Elder(parameters).regularize(context, removed)
    assert _distance(dense, tiny_llama, context.windows, removed) < before / 2
    assert [point.update for point in points] == list(range(1, 31))
    assert points[0].gate is not None
    assert 0 < points[0].gate < 1
    assert points[-1].gate == 0
    assert points[0].penalty is not None
    assert points[-1].penalty is None  # the layers are no longer computed


def test_the_papers_form_keeps_the_layers_and_pulls_them_to_the_identity(tiny_llama: PreTrainedModel) -> None:
    parameters = PAPER.model_copy(update={"updates": 20, "penalty": 10.0, "learning_rate": 3e-3})
    points = Elder(parameters).regularize(context_of(tiny_llama), (2, 3))
    assert {point.gate for point in points} == {1.0}
    penalties = [point.penalty for point in points if point.penalty is not None]
    assert len(penalties) == 20
    assert penalties[-1] < penalties[0] / 2


def test_recovery_is_the_last_part_of_the_same_budget(tiny_llama: PreTrainedModel) -> None:
    parameters = PAPER.model_copy(update={"updates": 20, "penalty": 1.0, "recovery_fraction": 0.25})
    points = Elder(parameters).regularize(context_of(tiny_llama), (2, 3))
    assert [point.gate for point in points] == [1.0] * 15 + [0.0] * 5
    assert [point.penalty is None for point in points] == [False] * 15 + [True] * 5


def test_the_jump_at_the_beginning_of_recovery_is_no_divergence(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_of, numbers = training.loss_of, count(1)
    monkeypatch.setattr(training, "loss_of", lambda *given: loss_of(*given) * (100.0 if next(numbers) > 20 else 0.1))
    parameters = PAPER.model_copy(update={"updates": 40, "recovery_fraction": 0.5})
    context = context_of(tiny_llama, samples=96)
    assert len(Elder(parameters).regularize(context, (2, 3))) == 40
    assert context.monitor.warnings == []


def test_bypassed_layers_are_not_trained_once_their_weight_is_0(tiny_llama: PreTrainedModel) -> None:
    parameters = QUICK.model_copy(update={"updates": 3, "anneal_fraction": 0.01})
    before = state(tiny_llama)
    Elder(parameters).regularize(context_of(tiny_llama), (2,))
    after = tiny_llama.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if ".layers.2." in name)
    assert not torch.equal(before["model.layers.1.mlp.up_proj.weight"], after["model.layers.1.mlp.up_proj.weight"])


def test_by_default_the_layers_are_out_from_the_first_update_on(tiny_llama: PreTrainedModel) -> None:
    before = state(tiny_llama)
    points = Elder(QUICK).regularize(context_of(tiny_llama), (2,))
    assert {(point.gate, point.penalty) for point in points} == {(0.0, None)}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_llama.state_dict().items() if ".2." in name)


def test_no_updates_prune_without_regularising(tiny_llama: PreTrainedModel) -> None:
    before = state(tiny_llama)
    assert Elder(QUICK.model_copy(update={"updates": 0})).regularize(context_of(tiny_llama), (2,)) == ()
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_llama.state_dict().items())


def test_repeating_the_text_is_warned_of(tiny_llama: PreTrainedModel) -> None:
    context = context_of(tiny_llama, samples=8)
    Elder(QUICK).regularize(context, (1,))
    assert "8 sequences, so training went through it 1.5 times" in context.monitor.warnings[0]
    assert "with 12 sequences none would be read twice" in context.monitor.warnings[0]


@pytest.mark.parametrize("call", ["select", "regularize"])
def test_a_loss_that_is_no_number_names_its_update(tiny_llama: PreTrainedModel, call: str) -> None:
    with torch.no_grad():
        decoder_layers(tiny_llama)[0].mlp.up_proj.weight[0] = float("nan")
    method, context = Elder(QUICK), context_of(tiny_llama)
    with pytest.raises(NonFiniteLoss, match=r"became nan at update 1"):
        method.select(context, 2) if call == "select" else method.regularize(context, (1,))


def test_a_rate_that_is_far_too_high_is_found_out(tiny_llama: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in tiny_llama.parameters():
            parameter.mul_(1e12)
    with pytest.raises(NonFiniteLoss):
        Elder(QUICK).regularize(context_of(tiny_llama), (1,))


@pytest.mark.parametrize("method", METHODS_TO_TEST)
def test_a_cancelled_selection_leaves_the_model_as_it_was(tiny_llama: PreTrainedModel, method: Method) -> None:
    monitor = Monitor(cancelled=lambda: True)
    with pytest.raises(Cancelled):
        method.select(context_of(tiny_llama, monitor=monitor), 2)
    assert all(parameter.requires_grad for parameter in tiny_llama.parameters())
    assert not any(layer._forward_hooks for layer in decoder_layers(tiny_llama))


def test_frozen_restores_only_what_was_learning(tiny_llama: PreTrainedModel) -> None:
    tiny_llama.lm_head.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in tiny_llama.parameters()]
    with selection.frozen(tiny_llama):
        assert not any(parameter.requires_grad for parameter in tiny_llama.parameters())
    assert [parameter.requires_grad for parameter in tiny_llama.parameters()] == before


@pytest.mark.parametrize("entry", METHODS.values(), ids=METHODS)
def test_every_registered_method_can_be_loaded(entry: object) -> None:
    assert isinstance(entry.load()(entry.parameters()), Method)  # type: ignore[attr-defined]


def _distance(dense: PreTrainedModel, model: PreTrainedModel, windows: Tensor, removed: tuple[int, ...]) -> float:
    """Mean squared difference of the logits, the layers `removed` bypassed in `model`."""
    with torch.no_grad(), bypassed(model, removed):
        mine = model(input_ids=windows, use_cache=False).logits
        return float((mine - dense(input_ids=windows, use_cache=False).logits).square().mean())


def test_one_round_of_learning_serves_every_depth(tiny_llama: PreTrainedModel) -> None:
    idle(tiny_llama, 1, 4)
    chooser = Elder(LONG).chooser(context_of(tiny_llama), (1, 2, 3))
    found = {count: chooser(count) for count in (1, 2, 3)}
    assert chooser(2) is found[2]
    assert {count: len(selection.removed) for count, selection in found.items()} == {1: 1, 2: 2, 3: 3}
    assert found[2].removed == (1, 4)
    assert set(found[2].removed) < set(found[3].removed)
    assert found[1].gate_path == found[2].gate_path == found[3].gate_path


def test_learning_ends_when_the_ranking_has_settled(tiny_llama: PreTrainedModel) -> None:
    idle(tiny_llama, 1, 4)
    patient = Elder(LONG.model_copy(update={"gate_steps": 200, "gate_patience": 12})).select(context_of(tiny_llama), 2)
    assert 12 < len(patient.gate_path) < 100
    assert patient.removed == (1, 4)
    rounds = Elder(QUICK.model_copy(update={"layers_per_round": 1, "gate_steps": 50, "gate_patience": 3}))
    assert len(rounds.select(context_of(tiny_llama), 2).gate_path) < 100


@pytest.mark.parametrize(
    ("budget", "learnt", "trained"),
    [
        ({"updates": 20}, 5, 15),
        ({"updates": 40}, 6, 30),  # gate_steps holds too
        ({"tokens": 20 * 2 * 16}, 5, 15),
        ({"tokens": 20 * 2 * 16, "gate_batch_size": 1}, 6, 15),
        ({"updates": 24, "layers_per_round": 1}, 2 * 3, 18),
        ({"updates": 100, "gate_fraction": 0.29, "gate_steps": 50}, 29, 71),  # 0.29 * 100 is less than 29 in binary
        ({"updates": 1, "gate_fraction": 0.5}, 2, 1),  # one turn of the layers, and an update of training, at least
        ({"updates": 40, "layers_per_round": 1, "gate_fraction": 0.01}, 2 * 2, 40),
        ({"updates": 20, "gate_share": 0.01, "gate_fraction": 0.1, "gate_steps": 50}, 6, 18),  # 6 layers, one at a time
    ],
)
def test_both_stages_share_one_budget(
    tiny_llama: PreTrainedModel, budget: dict[str, object], learnt: int, trained: int
) -> None:
    bounds = {"updates": None, "gate_fraction": 0.25, "learning_rate": 1e-4}  # at which no update is taken back
    parameters = QUICK.model_copy(update={**bounds, **budget})
    selection = Elder(parameters).select(context_of(tiny_llama), 2)
    assert len(selection.gate_path) == learnt
    assert len(Elder(parameters).regularize(context_of(tiny_llama), selection.removed)) == trained


def test_a_budget_of_seconds_ends_each_rounds_learning(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on by a second with each update's loss."""
    now = [0.0]
    loss_of = selection.loss_of

    def slow(*given: object) -> Tensor:
        now[0] += 1
        return loss_of(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "loss_of", slow)
    monkeypatch.setattr(selection, "time", SimpleNamespace(monotonic=lambda: now[0]))
    parameters = QUICK.model_copy(update={"updates": None, "seconds": 30.0, "gate_fraction": 0.2, "gate_steps": 50})
    assert len(Elder(parameters).select(context_of(tiny_llama), 2).gate_path) == 6
    rounds = parameters.model_copy(update={"layers_per_round": 1})
    assert [point.round for point in Elder(rounds).select(context_of(tiny_llama), 2).gate_path] == [0] * 3 + [1] * 3
    least = parameters.model_copy(update={"seconds": 0.001})
    assert len(Elder(least).select(context_of(tiny_llama), 2).gate_path) == 2, "one turn of all layers"
    assert training.Budget.of(parameters, 16) == training.Budget(None, 24.0)


def test_learning_that_its_share_ended_too_soon_is_told(tiny_llama: PreTrainedModel) -> None:
    idle(tiny_llama, 1, 4)
    parameters = LONG.model_copy(update={"updates": 100, "gate_steps": 200, "gate_patience": 12})
    context = context_of(tiny_llama, samples=256)
    Elder(parameters.model_copy(update={"gate_fraction": 0.99})).select(context, 2)
    assert context.monitor.warnings == []
    Elder(parameters.model_copy(update={"gate_fraction": 0.1})).select(context, 2)
    (warning,) = context.monitor.warnings
    assert warning.startswith("gate_fraction 0.1 ended the learning of layer weights before it was settled")
    context = context_of(tiny_llama, samples=256)
    Elder(parameters.model_copy(update={"gate_fraction": 0.1, "layers_per_round": 1})).select(context, 3)
    (warning,) = context.monitor.warnings
    assert warning.startswith("gate_fraction 0.1 ended the learning of layer weights before it was settled")


def test_every_round_begins_with_a_turn_of_all_layers(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = selection.gated
    in_effect: list[list[int]] = []

    def noted(layers: object, weights: Tensor, form: object, chosen: list[int]) -> object:
        in_effect.append(chosen)
        return gated(layers, weights, form, chosen)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "gated", noted)
    parameters = QUICK.model_copy(
        update={"gate_share": 0.25, "layers_per_round": 1, "updates": 50, "gate_fraction": 0.3, "gate_steps": 50}
    )
    found = Elder(parameters).select(context_of(tiny_llama), 3)
    assert [point.round for point in found.gate_path] == [0] * 5 + [1] * 5 + [2] * 5
    for number, active in enumerate((6, 5, 4)):
        turn = in_effect[5 * number : 5 * number + 4]
        assert len({layer for chosen in turn for layer in chosen}) == active


def test_learning_that_goes_on_has_the_seconds_that_were_left(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an ended process used of them, as the journal has it, counts; the time until the next one began does not."""
    now = [100.0]
    monkeypatch.setattr(selection, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def learning() -> selection._Learning:
        weights = torch.ones(6)
        return selection._Learning(weights, selection._Proximal(QUICK, weights), selection._Patience(0, (2,), ()))

    first = learning()
    now[0] += 7
    entry = first.entry()
    now[0] = 5000.0
    second = learning()
    second.restore(entry)
    now[0] += 2
    assert second.seconds == 9


def test_there_must_be_a_budget_to_share() -> None:
    with pytest.raises(ValueError, match=r"gate_fraction 0\.2 is a share of a budget that is 0; give tokens, updates"):
        ElderParameters(tokens=0, gate_fraction=0.2)
    assert ElderParameters(gate_fraction=0.2).tokens == 250_000


def test_the_search_mends_a_wrong_ranking(tiny_llama: PreTrainedModel) -> None:
    torch.nn.init.normal_(tiny_llama.model.layers[0].mlp.down_proj.weight, std=1.0)
    idle(tiny_llama, 1, 4)
    wrong = [1, 3, 2, 4, 5, 0]
    assert refined(tiny_llama, SEARCHED, wrong, 2) == {1, 4}


@pytest.mark.parametrize(
    ("given", "searched"),
    [
        ({}, 0),
        ({"tokens": 0}, 16),
        ({"updates": 0}, 16),
        ({"search_samples": 8}, 8),
        ({"tokens": 0, "search_samples": 0}, 0),
        ({"tokens": 0, "search_width": 0}, 0),
        ({"tokens": 0, "layers_per_round": 1}, 0),
    ],
)
def test_whether_there_is_a_search_follows_from_the_budget(given: dict[str, object], searched: int) -> None:
    assert ElderParameters.model_validate(given).searched == searched


def test_weights_that_a_search_follows_are_learnt_for_as_long_as_it_takes_to_begin(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tiny_llama, samples=200)
    default = QUICK.model_copy(update={"gate_steps": None, "gate_patience": None})
    monkeypatch.setattr(selection._Patience, "ended", lambda *_: False)

    def learnt(**update: object) -> int:
        return len(Elder(default.model_copy(update=update)).select(context, 2).gate_path)

    assert learnt(search_samples=4) == 16
    assert context.monitor.warnings == [], "the search settles it"
    assert learnt(search_samples=4, gate_steps=20) == 20
    assert learnt(search_samples=4, gate_patience=50) == 96
    assert learnt() == 96
    assert learnt(search_samples=4, updates=20, gate_fraction=0.1, gate_share=0.1) == 6, "one turn of all layers"
    ended = [warning.split(" ended")[0] for warning in context.monitor.warnings]
    assert ended == ["gate_steps 20", "gate_steps 96", "gate_fraction 0.1"]


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({}, 96),
        ({"gate_steps": 7}, 7),
        ({"tokens": 0}, 40),
        ({"tokens": 0, "gate_steps": 7}, 7),
        ({"tokens": 0, "gate_patience": 8}, 96),
        ({"tokens": 0, "search_samples": 0}, 96),
    ],
)
def test_a_search_begins_after_two_turns_of_all_layers(given: dict[str, object], most: int) -> None:
    parameters = ElderParameters.model_validate(given)
    assert parameters.most_gate_updates(20) == parameters.gate_updates(16, rounds=1, turn=20) == most


@pytest.mark.parametrize(
    ("given", "turn", "patience"),
    [({}, 2, 8), ({}, 7, 14), ({"tokens": 0}, 2, 8), ({"gate_patience": 3}, 7, 3), ({"gate_patience": 0}, 2, 0)],
)
def test_weights_must_be_settled_for_two_turns(given: dict[str, object], turn: int, patience: int) -> None:
    assert ElderParameters.model_validate(given).patience(turn) == patience


def test_learning_does_not_end_within_the_first_turns(tiny_llama: PreTrainedModel) -> None:
    context = context_of(tiny_llama, samples=64)
    parameters = QUICK.model_copy(update={"gate_share": 0.1, "gate_steps": 96, "gate_penalty": 0.0})
    unmoved = parameters.model_copy(update={"gate_patience": None, "gate_learning_rate": 1e-6})
    assert len(Elder(unmoved).select(context, 2).gate_path) >= 12
    assert context.monitor.warnings == []


def test_what_a_search_compares_with_costs_no_pass_of_its_own(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chosen set is judged on what is kept of it for the sets without one of its layers."""
    kept: list[tuple[frozenset[int], bytes]] = []
    made = Prefix.__init__

    def noted(self: Prefix, model: PreTrainedModel, ids: Tensor, removed: Collection[int] = ()) -> None:
        kept.append((frozenset(removed), ids.numpy().tobytes()))
        made(self, model, ids, removed)

    monkeypatch.setattr(Prefix, "__init__", noted)
    idle(tiny_llama, 1, 4)
    assert refined(tiny_llama, SEARCHED.model_copy(update={"search_batch_size": 2}), [5, 3, 0, 1, 2, 4], 2) == {1, 4}
    assert len(kept) == len(set(kept)) > 0, "one set kept on one batch twice"


def test_the_search_computes_the_rest_only_of_the_sets_that_are_ahead(
    tiny_llama: PreTrainedModel, searched: list[tuple[frozenset[int], bytes]]
) -> None:
    idle(tiny_llama, 1, 4)
    parameters = SEARCHED.model_copy(update={"search_batch_size": 2})
    assert refined(tiny_llama, parameters, [5, 3, 0, 1, 2, 4], 2) == {1, 4}
    assert len(searched) == len(set(searched)), "one set on one batch twice"
    passes = Counter(layers for layers, _ in searched)
    assert set(passes.values()) == {1, 4}, "a quarter of the sequences, or all of them"
    assert len(passes) < 21  # of 15 pairs and 6 single layers


def test_the_search_stays_near_the_border(tiny_llama: PreTrainedModel) -> None:
    idle(tiny_llama, 1, 4)
    narrow = SEARCHED.model_copy(update={"search_border": 1})
    assert 4 not in refined(tiny_llama, narrow, [1, 3, 2, 5, 4, 0], 2)


def test_where_the_best_return_is_no_gain_only_a_wider_search_tries_the_next(
    tiny_llama: PreTrainedModel, searched: list[tuple[frozenset[int], bytes]]
) -> None:
    idle(tiny_llama, 1, 4)
    tried = []
    for width in (1, 2):
        searched.clear()
        parameters = SEARCHED.model_copy(update={"search_width": width})
        assert refined(tiny_llama, parameters, [1, 4, 0, 2, 3, 5], 2) == {1, 4}
        tried.append({layers for layers, _ in searched if len(layers) == 2})
    assert tried[0] < tried[1]


def test_adam_moves_only_the_weights_that_were_in_effect(tiny_llama: PreTrainedModel) -> None:
    parameters = QUICK.model_copy(update={"gate_optimizer": GateOptimizer.ADAM, "gate_share": 0.5, "gate_penalty": 1.0})
    path = Elder(parameters).select(context_of(tiny_llama), 2).gate_path
    changes = [
        [layer for layer in range(6) if before.weights[layer] != after.weights[layer]]
        for before, after in pairwise(path)
    ]
    assert [len(changed) for changed in changes] == [3] * 5
