"""Weights on layers and looks at them, by hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from elder_core.gates import gated, observed
from elder_core.parameters import Gate
from elder_core.surgery import bypassed, decoder_layers
from tests.unit.elder_core.acceptance import TRIED, Family, named
from tests.unit.elder_core.conftest import MakeTiny
from tests.unit.elder_core.families import LAYERS, each

IDS = torch.arange(1, 25).view(2, 12)  # without 0, whose embedding is zero: gradients through norms of it overflow
NEVER_CHECKPOINTED = ("ctrl", "jetmoe")
AT_RANDOM_IN_TRAINING = ("phimoe",)  # tokens are sent to experts that are drawn, the same again for the same seed


class Doubler(nn.Module):
    """A layer that takes its hidden state by name and answers with a tuple, as some architectures do."""

    def forward(self, *, hidden_states: Tensor) -> tuple[Tensor, str]:
        return 2 * hidden_states, "attention"


@torch.no_grad()
def logits(model: PreTrainedModel, **given: Tensor) -> Tensor:
    result: Tensor = model(**given or {"input_ids": IDS}, use_cache=False).logits
    return result


def given_to(family: Family) -> dict[str, Tensor]:
    return family.given() if family.sees else {"input_ids": IDS}


@pytest.mark.parametrize("name", each(TRIED))
def test_a_residual_weight_of_0_is_the_layer_removed(name: str) -> None:
    family = named(name)
    model, given = family.build(), given_to(family)
    layers = decoder_layers(model)
    for removed in ([2], [0, LAYERS - 1]):
        weights = torch.ones(len(layers))
        weights[removed] = 0
        with gated(layers, weights, Gate.RESIDUAL, range(len(layers))):
            found = logits(model, **given)
        with bypassed(model, removed):
            expected = logits(model, **given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", list(Gate))
def test_leaving_the_context_leaves_nothing_behind(tiny_llama: PreTrainedModel, form: Gate) -> None:
    before = logits(tiny_llama)
    layers = decoder_layers(tiny_llama)
    with gated(layers, torch.full((len(layers),), 0.5), form, range(len(layers))):
        assert not torch.equal(logits(tiny_llama), before)
    assert torch.equal(logits(tiny_llama), before)
    assert not any(layer._forward_hooks for layer in layers)


def test_hooks_go_when_the_forward_pass_fails(tiny_llama: PreTrainedModel) -> None:
    layers = decoder_layers(tiny_llama)
    with pytest.raises(KeyError), gated(layers, torch.ones(len(layers)), Gate.OUTPUT, [0, 1]):
        raise KeyError
    assert not any(layer._forward_hooks for layer in layers)


@pytest.mark.parametrize(("form", "expected"), [(Gate.RESIDUAL, 1.25), (Gate.OUTPUT, 0.5)])
def test_both_forms_by_hand_on_a_layer_with_named_input_and_tuple_output(form: Gate, expected: float) -> None:
    layer, weights = Doubler(), torch.tensor([0.25])
    with gated([layer], weights, form, [0]):
        output, rest = layer(hidden_states=torch.ones(1, 1, 3))
    assert torch.equal(output, torch.full((1, 1, 3), expected))
    assert rest == "attention"


def test_gradients_reach_the_weights_of_the_chosen_layers_only(tiny_llama: PreTrainedModel) -> None:
    tiny_llama.requires_grad_(False)
    layers = decoder_layers(tiny_llama)
    weights = torch.ones(len(layers), requires_grad=True)
    with gated(layers, weights, Gate.RESIDUAL, [1, 3]):
        loss = tiny_llama(input_ids=IDS, use_cache=False).logits.logsumexp(-1).mean()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.nonzero().flatten().tolist() == [1, 3]


def test_a_weight_finer_than_bfloat16_is_not_lost() -> None:
    layer = Doubler()
    x = torch.full((1, 1, 1), 384.0, dtype=torch.bfloat16)
    with gated([layer], torch.tensor([0.9975]), Gate.OUTPUT, [0]):
        output, _ = layer(hidden_states=x)
    assert output.dtype == torch.bfloat16
    assert output.item() == 768  # 766.08 rounded; with the weight rounded first it would be 764


@pytest.mark.parametrize("gate", [False, True])
def test_observed_sees_the_output_without_the_gate(gate: bool) -> None:
    layer = Doubler()
    with (
        observed([layer], lambda x, y: (y - x).sum(), [0]) as seen,
        gated([layer], torch.zeros(1), Gate.RESIDUAL, [0]) if gate else nullcontext(),
    ):
        output, _ = layer(hidden_states=torch.ones(1, 1, 3))
    assert seen[0].item() == 3
    assert output.sum().item() == (3 if gate else 6)


@pytest.mark.parametrize("name", each(TRIED))
def test_gates_work_with_gradient_checkpointing_and_leave_the_model_as_it_was(name: str) -> None:
    family = named(name)
    model, given = family.build().requires_grad_(False), given_to(family)
    before, layers = copy.deepcopy(model.state_dict()), decoder_layers(model)
    chosen = [0, 2, 5]

    def gradient() -> Tensor:
        torch.manual_seed(0)
        weights = torch.full((len(layers),), 0.5, requires_grad=True)
        with gated(layers, weights, Gate.RESIDUAL, chosen):
            model(**given, use_cache=False).logits.logsumexp(-1).mean().backward()
        assert weights.grad is not None
        return weights.grad

    whole = logits(model, **given)
    with training(model) if name in AT_RANDOM_IN_TRAINING else nullcontext():
        plain = gradient()
    assert plain.nonzero().flatten().tolist() == chosen
    if name not in NEVER_CHECKPOINTED:
        with training(model), checkpointed(model):
            found = gradient()
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())
    assert torch.equal(logits(model, **given), whole)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(layer._forward_hooks or "forward" in layer.__dict__ for layer in layers)


def test_what_cannot_be_checkpointed_is_what_transformers_says(make_tiny: MakeTiny) -> None:
    assert all(not make_tiny(family).supports_gradient_checkpointing for family in NEVER_CHECKPOINTED)


@contextmanager
def training(model: PreTrainedModel) -> Iterator[None]:
    """In training mode, which is the only one that checkpoints, without what drops numbers at random."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        vars(module).update({name: 0.0 for name, value in vars(module).items() if "drop" in name and value})
    try:
        yield
    finally:
        model.eval()


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Compute each layer again on the way back."""
    model.activation_checkpointing_enable()
    try:
        yield
    finally:
        model.activation_checkpointing_disable()
