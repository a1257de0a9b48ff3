"""Models without some layers, computed from kept hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.architectures.table import ARCHITECTURES
from elder_core.errors import LayersOutOfRange
from elder_core.methods.base import Context
from elder_core.methods.losses import logits_of
from elder_core.methods.mathematics import kl_divergence
from elder_core.methods.prefix import Prefix, Reference
from elder_core.methods.sleb import Sleb
from elder_core.monitor import Monitor
from elder_core.parameters import SlebParameters
from elder_core.surgery import bypassed, decoder_layers
from tests.unit.elder_core.conftest import LAYERS, MakeTiny
from tests.unit.elder_core.families import each

IDS = torch.randint(1, 257, (2, 24), generator=torch.Generator().manual_seed(0))  # past the sliding windows of 8
POSITIONS = torch.arange(3, 24, 4)
VARIATIONS = ((), (0,), (2,), (5,), (0, 5), (1, 2), (2, 3, 4), (0, 1, 2, 3, 4), tuple(range(LAYERS)))


@torch.no_grad()
def expected(model: PreTrainedModel, removed: tuple[int, ...]) -> Tensor:
    with bypassed(model, removed):
        return logits_of(model, IDS)


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """The indices of layers that are computed: each has a first part that a bypassed layer does not reach."""
    calls: list[int] = []
    handles = [
        next(layer.children()).register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(decoder_layers(model))
    ]
    yield calls
    for handle in handles:
        handle.remove()


def test_sets_are_compared_with_the_whole_model(tiny_llama: PreTrainedModel) -> None:
    whole = expected(tiny_llama, ())[:, POSITIONS]
    sets = [(1, 3), (), (0, 1, 2, 3, 4, 5)]
    wanted = [kl_divergence(expected(tiny_llama, layers)[:, POSITIONS], whole).item() for layers in sets]
    found = list(Reference.of(tiny_llama, IDS).kl_without(sets, like=(1, 2)))
    assert found == pytest.approx(wanted, rel=0.02, abs=1e-4)  # the whole model's logits are kept in bfloat16
    assert found[0] > 10 * found[1]


@pytest.mark.parametrize("logit", [torch.nan, -torch.inf])
def test_what_is_no_number_is_infinitely_far(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, logit: float
) -> None:
    reference = Reference.of(tiny_llama, IDS)
    found = Prefix.logits
    broken = torch.zeros(257)
    broken[3] = logit
    monkeypatch.setattr(Prefix, "logits", lambda *given: found(*given) + broken)
    assert list(reference.kl_without([(1,)], like=())) == [torch.inf]


@pytest.mark.parametrize("model_type", each(ARCHITECTURES))
@pytest.mark.parametrize("base", [(), (0, 3), (2, 5)])
def test_logits_are_those_of_the_bypassed_model(make_tiny: MakeTiny, model_type: str, base: tuple[int, ...]) -> None:
    model = make_tiny(model_type)
    prefix = Prefix(model, IDS, base)
    for removed in (base, *VARIATIONS):
        wanted = expected(model, removed)
        assert torch.equal(prefix.logits(removed), wanted), removed
        torch.testing.assert_close(prefix.logits(removed, POSITIONS), wanted[:, POSITIONS])


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_only_layers_after_the_first_difference_are_computed(make_tiny: MakeTiny, model_type: str) -> None:
    model = make_tiny(model_type)
    with counted(model) as calls:
        prefix = Prefix(model, IDS, (2,))
        assert calls == [0, 1, 3, 4, 5]
        for removed, computed in (
            ((2, 4), [5]),
            ((2,), []),
            ((), [2, 3, 4, 5]),
            ((0, 2), [1, 3, 4, 5]),
            ((1, 4), [2, 3, 5]),
        ):
            calls.clear()
            prefix.logits(removed)
            assert calls == computed


def test_sleb_computes_only_what_comes_after_the_layer_it_leaves_out(tiny_llama: PreTrainedModel) -> None:
    context = Context(tiny_llama, IDS, 0, torch.device("cpu"), Monitor())
    with counted(tiny_llama) as calls:
        Sleb(SlebParameters()).select(context, 2)
    first = LAYERS + sum(range(LAYERS))  # the whole model, then for each layer those after it
    second = LAYERS - 1 + sum(range(LAYERS - 1))
    assert len(calls) == first + second


def test_nothing_is_left_on_the_model(tiny_llama: PreTrainedModel) -> None:
    prefix = Prefix(tiny_llama, IDS)
    assert not prefix.logits((3,)).requires_grad
    assert not any(layer._forward_hooks or "forward" in layer.__dict__ for layer in decoder_layers(tiny_llama))


def test_bypassed_layers_need_no_memory_of_their_own(tiny_llama: PreTrainedModel) -> None:
    prefix = Prefix(tiny_llama, IDS, (1, 2))
    assert len({state.data_ptr() for state in prefix._leaving}) == LAYERS - 2


def test_a_layer_that_does_not_exist_is_refused(tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(LayersOutOfRange, match="Layer 6 does not exist"):
        Prefix(tiny_llama, IDS).logits((6,))
