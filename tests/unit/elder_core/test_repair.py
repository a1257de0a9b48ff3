"""What linear maps in the gaps make up for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from elder_core.architectures.table import ARCHITECTURES
from elder_core.methods.elder.search import refine
from elder_core.methods.losses import logits_of
from elder_core.methods.mathematics import kl_divergence
from elder_core.methods.prefix import Prefix
from elder_core.methods.repair import Repair
from elder_core.parameters import ElderParameters, SearchScore
from elder_core.surgery import decoder_layers
from tests.unit.elder_core.conftest import LAYERS, MakeTiny
from tests.unit.elder_core.families import each
from tests.unit.elder_core.test_methods import QUICK, context_of, idle

IDS = torch.randint(1, 257, (8, 24), generator=torch.Generator().manual_seed(0))
SETS = ((0,), (2,), (5,), (0, 5), (1, 2), (2, 3, 4), (1, 3, 5), (0, 1, 2, 3, 4))


class Linear(nn.Module):
    """Stands in for a decoder layer: the hidden state times a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states @ self.matrix


@pytest.fixture
def turned(tiny_llama: PreTrainedModel) -> PreTrainedModel:
    """A model whose layer 4 is linear, and far from the identity, and whose layer 2 does next to nothing."""
    hidden = tiny_llama.config.hidden_size
    matrix, _ = torch.linalg.qr(torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(1)))
    decoder_layers(tiny_llama)[4] = Linear(matrix)
    for parameter in decoder_layers(tiny_llama)[2].parameters():
        parameter.data *= 0.7 if parameter.ndim > 1 else 1.0
    return tiny_llama.requires_grad_(False)


def test_a_linear_layer_can_be_made_up_for_whatever_its_loss(turned: PreTrainedModel) -> None:
    repair, prefix = Repair(turned, IDS), Prefix(turned, IDS)
    whole = logits_of(turned, IDS)
    loss = {layer: kl_divergence(prefix.logits((layer,)), whole) for layer in (2, 4)}
    error = {layer: repair.error((layer,)) for layer in (2, 4)}
    assert loss[4] > 3 * loss[2]
    assert error[4] < error[2] / 3


def test_the_search_goes_by_what_it_is_told_and_by_default_not_at_all_where_training_follows(
    turned: PreTrainedModel,
) -> None:
    def found(**update: object) -> frozenset[int]:
        parameters = QUICK.model_copy(update={"search_samples": 8, **update})
        return refine(context_of(turned), parameters, [1, 2, 4, 3, 5, 0], 1)

    assert found(search_score=SearchScore.RECOVERY) == found(search_score=SearchScore.RECOVERY, updates=0) == {4}
    assert found(updates=0) == found(updates=None) == found(search_score=SearchScore.LOSS) == {2}
    assert found() == {1}, "the first of the ranking"


@pytest.mark.parametrize(
    ("given", "score"),
    [
        ({}, None),
        ({"tokens": 0}, SearchScore.LOSS),
        ({"search_score": SearchScore.RECOVERY}, SearchScore.RECOVERY),
        ({"tokens": 0, "search_samples": 0}, None),
        ({"tokens": 0, "layers_per_round": 1}, None),
    ],
)
def test_whether_there_is_a_search_follows_from_the_budget(given: dict[str, object], score: SearchScore | None) -> None:
    assert ElderParameters.model_validate(given).searched_by is score


@pytest.mark.parametrize("model_type", each(ARCHITECTURES))
def test_beginning_like_another_set_changes_no_error(make_tiny: MakeTiny, model_type: str) -> None:
    model = make_tiny(model_type)
    plain = {removed: Repair(model, IDS).error(removed) for removed in SETS}
    assert all(error > 0 for error in plain.values())
    repair = Repair(model, IDS)
    assert repair.error(()) < 1e-6
    for base in ((), *SETS):
        repair.begin_like(base)
        for removed in SETS:
            assert repair.error(removed) == pytest.approx(plain[removed], rel=1e-4), (base, removed)


def test_only_layers_from_the_first_difference_on_are_computed(tiny_llama: PreTrainedModel) -> None:
    repair = Repair(tiny_llama, IDS)
    calls: list[int] = []
    for index, layer in enumerate(decoder_layers(tiny_llama)):
        layer.mlp.register_forward_hook(lambda *_, index=index: calls.append(index))
    repair.begin_like((2,))
    assert calls == [3, 4, 5]  # what comes before is that of the whole model
    for removed, computed in (((2, 4), [5]), ((2,), []), ((), [2, 3, 4, 5]), ((1, 4), [2, 3, 5])):
        calls.clear()
        repair.error(removed)
        assert calls == computed


def test_idle_layers_cost_nothing_and_nothing_is_left_on_the_model(tiny_llama: PreTrainedModel) -> None:
    idle(tiny_llama, 1, 4)
    repair = Repair(tiny_llama, IDS)
    errors = {pair: repair.error(pair) for pair in itertools.combinations(range(LAYERS), 2)}
    assert min(errors, key=lambda pair: errors[pair]) == (1, 4)
    assert errors[1, 4] < 1e-6
    assert not any(layer._forward_hooks or "forward" in layer.__dict__ for layer in decoder_layers(tiny_llama))


def test_one_sequence_is_enough(tiny_llama: PreTrainedModel) -> None:
    assert 0 <= Repair(tiny_llama, IDS[:1]).error((3,)) < 1
