"""Weights on layers and looks at them, by hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from elder_core.architectures.table import ARCHITECTURES
from elder_core.gates import gated, observed
from elder_core.parameters import Gate
from elder_core.surgery import bypassed, decoder_layers
from tests.unit.elder_core.conftest import MakeTiny
from tests.unit.elder_core.families import each

IDS = torch.arange(1, 25).view(2, 12)


class Doubler(nn.Module):
    """A layer that takes its hidden state by name and answers with a tuple, as some architectures do."""

    def forward(self, *, hidden_states: Tensor) -> tuple[Tensor, str]:
        return 2 * hidden_states, "attention"


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    result: Tensor = model(input_ids=IDS, use_cache=False).logits
    return result


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])
def test_a_residual_weight_of_0_is_the_layer_removed(make_tiny, model_type: str) -> None:  # type: ignore[no-untyped-def]
    model = make_tiny(model_type)
    layers = decoder_layers(model)
    weights = torch.ones(len(layers))
    weights[2] = 0
    with gated(layers, weights, Gate.RESIDUAL, range(len(layers))):
        found = logits(model)
    with bypassed(model, [2]):
        expected = logits(model)
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
    x = torch.full((1, 1, 1), 512.0, dtype=torch.bfloat16)
    with gated([layer], torch.tensor([0.999]), Gate.OUTPUT, [0]):
        output, _ = layer(hidden_states=x)
    assert output.dtype == torch.bfloat16
    assert output.item() == 1024 * 0.999 // 4 * 4 + 4 or output.item() == 1024  # the result is rounded, not the weight


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


@pytest.mark.parametrize("family", each(ARCHITECTURES))
def test_gates_work_with_gradient_checkpointing_and_leave_the_model_as_it_was(family: str, make_tiny: MakeTiny) -> None:
    model = make_tiny(family).requires_grad_(False)
    if not model.supports_gradient_checkpointing:
        assert family == "jetmoe"
        return
    before, layers = copy.deepcopy(model.state_dict()), decoder_layers(model)
    chosen = [0, 2, 5]

    def gradient() -> Tensor:
        weights = torch.full((len(layers),), 0.5, requires_grad=True)
        with gated(layers, weights, Gate.RESIDUAL, chosen):
            model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).mean().backward()
        assert weights.grad is not None
        return weights.grad

    whole, plain = logits(model), gradient()
    assert plain.nonzero().flatten().tolist() == chosen
    with checkpointed(model):
        found = gradient()
    if family != "phimoe":  # which sends tokens to experts at random in training
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())
    assert torch.equal(logits(model), whole)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(layer._forward_hooks or "forward" in layer.__dict__ for layer in layers)


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Compute each layer again on the way back; models do so in training mode only."""
    model.activation_checkpointing_enable()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        vars(module).update({name: 0.0 for name, value in vars(module).items() if "drop" in name and value})
    yield
    model.eval()
    model.activation_checkpointing_disable()
