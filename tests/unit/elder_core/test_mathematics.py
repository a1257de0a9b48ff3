"""The methods' tensor functions against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elder_core.methods.mathematics import (
    angular_distance,
    annealed_gate,
    block_influence,
    centred_cosine_distance,
    delta_norm,
    kl_divergence,
    learning_rate_at,
    magnitude_ratio,
    next_token_cross_entropy,
    proximal_step,
    ranking,
    ridge_map,
    soft_threshold,
    taylor_importance,
)
from elder_core.parameters import Norm


def test_soft_threshold() -> None:
    values = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    torch.testing.assert_close(soft_threshold(values, 0.75), torch.tensor([-1.25, 0.0, 0.0, 0.0, 1.25]))


def test_proximal_step() -> None:
    weights, gradient = torch.tensor([1.0, 0.5, 0.05, 1.0]), torch.tensor([2.0, -1.0, 0.0, -9.0])
    # steps of −0.1 · gradient to 0.8, 0.6, 0.05, 1.9; threshold 0.1 · 0.7 = 0.07; clamp
    found = proximal_step(weights, gradient, learning_rate=0.1, penalty=0.7)
    torch.testing.assert_close(found, torch.tensor([0.73, 0.53, 0.0, 1.0]))


def test_cross_entropy_predicts_the_next_token() -> None:
    ids = torch.tensor([[0, 1, 0]])
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [50.0, -50.0]]])
    # token 1 with probability 3/4, then token 0 with 1/2; the last position predicts nothing
    assert next_token_cross_entropy(logits, ids).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_kl_divergence_is_the_mean_over_tokens_from_the_teacher() -> None:
    teacher = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]))
    model = torch.log(torch.tensor([[[0.25, 0.75], [0.9, 0.1]]]))
    expected = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2
    assert kl_divergence(model, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert kl_divergence(model + 3, model).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("norm", "expected"), [(Norm.L1, (3 + 4) / 2), (Norm.L2, 5 / 2), (Norm.RELATIVE, (25 / 4 + 0) / 2)]
)
def test_delta_norm(norm: Norm, expected: float) -> None:
    x = torch.tensor([[[2.0, 0.0], [1.0, 1.0]]])
    y = torch.tensor([[[5.0, -4.0], [1.0, 1.0]]])
    assert delta_norm(x, y, norm=norm).item() == pytest.approx(expected)


def test_relative_norm_of_a_zero_state_is_finite() -> None:
    assert delta_norm(torch.zeros(1, 1, 2), torch.ones(1, 1, 2), norm=Norm.RELATIVE).isfinite()


def test_block_influence() -> None:
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    y = torch.tensor([[[7.0, 0.0], [0.0, 2.0]]])  # cosines 1 and 0
    assert block_influence(x, y).item() == pytest.approx(0.5)


def test_centred_cosine_distance_looks_at_how_the_tokens_of_a_sequence_differ() -> None:
    x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])
    y = torch.tensor([[[0.0, 2.0], [0.0, -2.0]], [[0.0, 5.0], [0.0, -5.0]]])  # cosines 0 and 1
    assert centred_cosine_distance(x, y).item() == pytest.approx(0.5)
    assert centred_cosine_distance(x, x).item() == pytest.approx(0, abs=1e-6)
    # The same with so much in common that the states themselves are almost parallel.
    shared = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    turned = 0.01 * torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(0))
    other = 0.01 * torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(1))
    assert angular_distance(shared + turned, shared + other).max() < 0.03
    assert centred_cosine_distance(shared + turned, shared + other).item() == pytest.approx(1, abs=0.3)


def test_centred_cosine_distance_takes_each_sequence_by_itself() -> None:
    x, y = (torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x = x + torch.tensor([0.0, 2.0, -3.0])[:, None, None]
    alone = [centred_cosine_distance(x[i : i + 1], y[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(centred_cosine_distance(x, y), torch.stack(alone).mean())


def test_centred_cosine_distance_of_states_that_say_nothing_has_a_small_gradient() -> None:
    same = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(1, 16, 8)
    rounded = same * (1 + 1e-6 * torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(1)))
    other = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(2))
    for states in (rounded, torch.zeros(1, 16, 8), torch.ones(1, 1, 8)):
        x = states.clone().requires_grad_()
        distance = centred_cosine_distance(x, other[:, : x.shape[1]])
        distance.backward()  # type: ignore[no-untyped-call]
        assert distance.item() == pytest.approx(1, abs=0.01)
        assert x.grad is not None
        assert x.grad.isfinite().all()
    varied = (same + 0.1 * other).clone().requires_grad_()
    centred_cosine_distance(varied, other.flip(1)).backward()  # type: ignore[no-untyped-call]
    rounded = rounded.clone().requires_grad_()
    centred_cosine_distance(rounded, other).backward()  # type: ignore[no-untyped-call]
    assert rounded.grad is not None
    assert varied.grad is not None
    assert rounded.grad.norm() < 1000 * varied.grad.norm()


def test_centred_cosine_distance_is_not_made_by_one_long_token() -> None:
    x, y = (torch.randn(1, 32, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    long = torch.ones(1, 32, 1)
    long[:, 0] = 1000.0
    torch.testing.assert_close(centred_cosine_distance(long * x, long * y), centred_cosine_distance(x, y))


def test_the_gate_falls_evenly_and_reaches_exactly_0() -> None:
    assert [annealed_gate(done / 8, 0.5) for done in range(1, 9)] == [0.75, 0.5, 0.25, 0, 0, 0, 0, 0]
    assert annealed_gate(1.0, 1.0) == 0
    assert {annealed_gate(done / 8, 0) for done in range(1, 9)} == {1.0}
    assert annealed_gate(1.0, 0.01) == 0
    assert [annealed_gate(done / 8, 0, recovery=0.5) for done in range(1, 9)] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert [annealed_gate(done / 4, 1.0, recovery=0.5) for done in range(1, 5)] == [0.75, 0.5, 0, 0]


@given(updates=st.integers(1, 300), peak=st.floats(1e-6, 1))
def test_the_learning_rate_rises_to_its_peak_and_falls_without_reaching_0(updates: int, peak: float) -> None:
    rates = [learning_rate_at(update / updates, (update + 1) / updates, peak) for update in range(updates)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(peak)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0


def test_ranking_breaks_ties_by_the_path() -> None:
    path = torch.tensor([[0.9, 0.5, 0.8, 0.2], [0.4, 0.0, 0.5, 0.1], [0.0, 0.0, 0.0, 0.3]])
    assert ranking(path[-1], path) == [1, 0, 2, 3]
    assert ranking(-path[-1], -path) == [1, 0, 2, 3], "a weight below 0 is as far from it as one above"


def test_angular_distance_is_a_share_of_half_a_turn() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 2.0], [1.0, 1.0]])
    y = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 1.0], [-2.0, -2.0]])
    torch.testing.assert_close(angular_distance(x, y), torch.tensor([0, 1 / 2, 1 / 4, 1.0]), atol=1e-3, rtol=0)


def test_magnitude_ratio_is_a_mean_of_ratios() -> None:
    x = torch.tensor([[[3.0, 4.0], [100.0, 0.0]]])
    y = torch.tensor([[[0.0, 10.0], [0.0, 100.0]]])
    assert magnitude_ratio(x, y).item() == pytest.approx((10 / 5 + 1) / 2)


def test_taylor_importance_adds_up_the_sizes_of_products() -> None:
    weights = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0]])]
    gradients = [torch.tensor([[0.5, 0.25]]), torch.tensor([[-2.0]])]
    assert taylor_importance(weights, gradients) == pytest.approx(0.5 + 0.5 + 6)


def test_ridge_map_without_pull_is_least_squares() -> None:
    m = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    wanted = torch.tensor([[2.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    found = ridge_map(m.T @ m, m.T @ (m @ wanted), 1e-12)
    torch.testing.assert_close(found, wanted)


def test_ridge_map_is_pulled_to_nothing() -> None:
    gram, cross = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[4.0, 0.0], [0.0, 10.0]])
    # the columns' mean is 2, so 2 · ½ is added to 1 and 3
    torch.testing.assert_close(ridge_map(gram, cross, 0.5), torch.tensor([[2.0, 0.0], [0.0, 2.5]]))
    torch.testing.assert_close(ridge_map(torch.zeros(2, 2), torch.zeros(2, 2), 1e-3), torch.zeros(2, 2))
