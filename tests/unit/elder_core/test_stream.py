"""What layers add to the hidden state, changed by their weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from elder_core.architectures.table import ARCHITECTURES
from elder_core.errors import UnsupportedArchitecture
from elder_core.gates import hooked
from elder_core.stream import map_output, outputs_scaled, require_plain_stream, scale_output, writers
from elder_core.surgery import bypassed, decoder_layers
from tests.unit.elder_core.conftest import MakeTiny

IDS = torch.randint(1, 257, (2, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("model_type", [name for name, row in ARCHITECTURES.items() if row.writers])
def test_a_layer_adds_what_its_writers_say_and_nothing_else(make_tiny: MakeTiny, model_type: str) -> None:
    model = make_tiny(model_type)
    layer, written, passed = decoder_layers(model)[2], [], []
    for module in writers(model, 2):
        module.register_forward_hook(lambda _, __, y: written.append(y.clone()))  # some models add in place
    with hooked([layer], {0: lambda x, y: passed.append((x.clone(), y.clone()))}):
        before = logits(model)
    ((x, y),) = passed
    torch.testing.assert_close(written[0].view_as(x) + written[1].view_as(x), y - x, rtol=1e-3, atol=1e-4)
    with bypassed(model, [2]):
        expected = logits(model)
    for module in writers(model, 2):
        scale_output(module, 0.0)
    torch.testing.assert_close(logits(model), expected)
    assert not torch.equal(before, expected)


@pytest.mark.parametrize("model_type", [name for name, row in ARCHITECTURES.items() if row.writers])
def test_hooks_scale_outputs_as_weights_do(make_tiny: MakeTiny, model_type: str) -> None:
    model, factors = make_tiny(model_type), [1.0, 0.5, 1.0, 3.0, 1.0, 1.0]
    before = logits(model)
    with outputs_scaled(model, factors):
        found = logits(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    for layer, factor in enumerate(factors):
        for module in writers(model, layer):
            scale_output(module, factor)
    torch.testing.assert_close(found, logits(model))
    assert not torch.allclose(found, before)


@pytest.mark.parametrize("model_type", ["mixtral", "gemma2", "granite", "mamba"])
def test_layers_that_add_more_than_two_outputs_are_refused(make_tiny: MakeTiny, model_type: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=f"cannot compensate for layers of {model_type} models"):
        writers(make_tiny(model_type), 0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_an_output_is_mapped(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    module: nn.Module = nn.Linear(3, 2, bias=bias) if kind == "linear" else Conv1D(2, 3)
    if kind == "conv1d":
        nn.init.normal_(module.bias)
    x, matrix = torch.randn(4, 3), torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    before = module(x)
    map_output(module, matrix)
    torch.testing.assert_close(module(x), before @ matrix)
    scale_output(module, 0.5)
    torch.testing.assert_close(module(x), before @ matrix / 2)


def test_both_writers_stay_parameters_of_their_type(make_tiny: MakeTiny) -> None:
    model = make_tiny("gpt_neox").to(torch.bfloat16)
    for module in writers(model, 0):
        map_output(module, torch.eye(32))
        assert isinstance(module.weight, nn.Parameter)
        assert module.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "config", [{"do_layer_norm_before": False}, {"_remove_final_layer_norm": True}], ids=["norm after", "no final norm"]
)
def test_a_stream_that_is_more_than_a_sum_is_refused(make_tiny: MakeTiny, config: dict[str, bool]) -> None:
    (name,) = config
    with pytest.raises(UnsupportedArchitecture, match=f"sets {name}"):
        require_plain_stream(make_tiny("opt", **config))
