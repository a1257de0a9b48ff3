"""The methods that ELDeR is compared with: what they choose, on every architecture, and what they do to weights."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from transformers import PreTrainedModel

from elder_core.architectures.table import ARCHITECTURES
from elder_core.errors import Cancelled, NonFiniteLoss
from elder_core.methods.base import Context
from elder_core.methods.baseline import Baseline
from elder_core.methods.losses import logits_of, loss_of
from elder_core.methods.sleb import Sleb
from elder_core.monitor import Monitor
from elder_core.parameters import (
    Loss,
    SlebParameters,
    TrainingParameters,
)
from elder_core.registry import METHODS
from elder_core.surgery import bypassed, decoder_layers
from tests.unit.elder_core.conftest import LAYERS, MakeTiny
from tests.unit.elder_core.test_methods import context_of, idle, state

BASELINES = [name for name, entry in METHODS.items() if issubclass(entry.load(), Baseline)]
THAT_SCORE = [name for name in BASELINES if "scoring_samples" in METHODS[name].parameters.model_fields]


def method_of(name: str, **given: object) -> Baseline[TrainingParameters]:
    """The baseline `name`, quick where its parameters allow."""
    entry = METHODS[name]
    quick: dict[str, object] = {"scoring_batch_size": 3}
    usable = {key: value for key, value in quick.items() if key in entry.parameters.model_fields}
    return entry.load()(entry.parameters(**{**usable, **given}))  # type: ignore[return-value]


@torch.no_grad()
def loss_without(context: Context, removed: Collection[int]) -> float:
    """Mean cross-entropy of the context's windows with the layers `removed` out."""
    with bypassed(context.model, removed):
        return loss_of(context.model, context.windows, Loss.CROSS_ENTROPY, None).item()


# What holds for all of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_works_on_every_architecture(make_tiny: MakeTiny, name: str, model_type: str) -> None:
    model = make_tiny(model_type)
    context, before, method = context_of(model), state(model), method_of(name)
    found = method.select(context, 2)
    assert found.removed == tuple(sorted(set(found.removed)))
    assert len(found.removed) == 2
    assert found.weights is None or len(found.weights) == LAYERS
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(layer._forward_hooks or "forward" in layer.__dict__ for layer in decoder_layers(model))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert method.regularize(context, found.removed) == ()
    with bypassed(model, found.removed), torch.no_grad():
        assert logits_of(model, context.windows).isfinite().all()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", BASELINES)
def test_all_layers_but_one_can_be_removed(tiny_llama: PreTrainedModel, name: str) -> None:
    context = context_of(tiny_llama)
    found = method_of(name).select(context, LAYERS - 1)
    assert len(found.removed) == LAYERS - 1
    method_of(name).regularize(context, found.removed)


@pytest.mark.parametrize("name", THAT_SCORE)
def test_adjacent_layers_that_do_nothing_are_found(tiny_llama: PreTrainedModel, name: str) -> None:
    idle(tiny_llama, 2, 3)
    assert method_of(name).select(context_of(tiny_llama), 2).removed == (2, 3)


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_seed_gives_the_same_layers(tiny_llama: PreTrainedModel, name: str) -> None:
    assert method_of(name).select(context_of(tiny_llama), 3) == method_of(name).select(context_of(tiny_llama), 3)


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
    for _ in range(3):
        losses = {layer: loss_without(context, {*expected, layer}) for layer in range(LAYERS) if layer not in expected}
        expected.append(min(losses, key=losses.__getitem__))
    found = Sleb(SlebParameters(scoring_batch_size=3)).select(context, 3)
    assert found.removed == tuple(sorted(expected))
    assert found.weights is not None
    for layer, loss in losses.items():  # of the last round
        assert found.weights[layer] == pytest.approx(loss, rel=1e-4)
    assert found.weights[expected[0]] == pytest.approx(loss_without(context, expected[:1]), rel=1e-4)


def test_sleb_scores_on_24_sequences_unless_told(tiny_llama: PreTrainedModel) -> None:
    context = context_of(tiny_llama, samples=30)
    assert len(Sleb(SlebParameters()).scoring_windows(context)) == 24
    assert len(Sleb(SlebParameters(scoring_samples=None)).scoring_windows(context)) == 30
