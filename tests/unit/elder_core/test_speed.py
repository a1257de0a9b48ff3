"""Structure only: a test that asserts a wall-clock time would fail on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING

import pytest
import torch

from elder_core.errors import Cancelled
from elder_core.evaluation import decoding, speed
from elder_core.evaluation.layer_clock import LayerClock
from elder_core.evaluation.speed import compare_speed, layers_share, time_alone, workload
from elder_core.surgery import decoder_layers, remove_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REMOVED = (1, 4)
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt"),
    *("mamba", "mamba2", "falcon_h1", "jamba", "qwen3_next", "lfm2"),
)


def windows(length: int = 24) -> torch.Tensor:
    return torch.randint(1, 257, (2, length), generator=torch.Generator().manual_seed(1))


def work_for(model: PreTrainedModel, *, new_tokens: int) -> speed.Workload:
    return workload(windows(), limit=decoding.max_positions(model), device=model.device, new_tokens=new_tokens)


@pytest.fixture
def pair(tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> tuple[PreTrainedModel, PreTrainedModel]:
    monkeypatch.setattr(speed, "FEWEST_ROUNDS", 3)
    pruned = deepcopy(tiny_llama)
    remove_layers(pruned, REMOVED)
    return tiny_llama, pruned


def test_figures_belong_together(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    work = work_for(pair[0], new_tokens=4)

    found = compare_speed(*pair, REMOVED, work, budget_seconds=0)

    for one in (found.before, found.after):
        assert one.prefill_tokens_per_second == pytest.approx(24 / one.prefill_latency_seconds)
        assert one.decode_tokens_per_second == pytest.approx(1 / one.decode_latency_seconds)
    assert found.ideal.prefill_speedup > 1
    assert found.ideal.decode_speedup > 1


def test_a_model_by_itself_has_the_same_figures(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    done: list[float] = []

    found, ideal = time_alone(pair[0], REMOVED, work_for(pair[0], new_tokens=4), budget_seconds=0, tick=done.append)

    assert found.prefill_tokens_per_second == pytest.approx(24 / found.prefill_latency_seconds)
    assert found.decode_tokens_per_second == pytest.approx(1 / found.decode_latency_seconds)
    assert ideal.decode_speedup > 1
    assert done[-1] == 1
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder_layers(pair[0]))


def test_nothing_removed_has_an_ideal_of_one(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    found = compare_speed(*pair, (), work_for(pair[0], new_tokens=2), budget_seconds=0)

    assert found.ideal.prefill_speedup == found.ideal.decode_speedup == 1


def test_the_share_of_all_layers_is_most_of_a_step_and_leaves_no_hook(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "FEWEST_ROUNDS", 2)
    done: list[float] = []
    share = layers_share(tiny_llama, work_for(tiny_llama, new_tokens=3), budget_seconds=0, tick=done.append)
    assert 0 < share < 1
    assert done == [0.0, 0.5, 1.0]
    assert not any(layer._forward_hooks for layer in decoder_layers(tiny_llama))


def test_the_share_is_of_decoding_steps_alone(tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_clocked_shares", lambda *_: [0.9, 0.2, 0.3, 0.4])
    assert layers_share(tiny_llama, work_for(tiny_llama, new_tokens=3), budget_seconds=0) == 0.3


def test_no_hook_stays_on_the_model(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    compare_speed(*pair, REMOVED, work_for(pair[0], new_tokens=2), budget_seconds=0)

    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder_layers(pair[0]))


def test_models_take_turns(pair: tuple[PreTrainedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    steps = speed._step_seconds

    def noted(model: PreTrainedModel, work: speed.Workload) -> object:
        order.append(len(decoder_layers(model)))
        return steps(model, work)

    monkeypatch.setattr(speed, "_step_seconds", noted)
    compare_speed(*pair, REMOVED, work_for(pair[0], new_tokens=2), budget_seconds=0)

    warm_up, rounds = order[:2], order[2:]
    assert warm_up == [6, 4]
    assert rounds == [6, 6, 4, 4, 6, 6, 6, 6, 4]


def test_slow_moments_do_not_change_how_the_models_compare(
    pair: tuple[PreTrainedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is compared with the same one of the same round; by medians alone prefill would take 10, not 2.5."""
    warm_up = [9.0, 9.0, 9.0]
    turns = {
        6: iter([warm_up, [5, 1, 2], [20, 10, 40], [2, 3, 3]]),
        4: iter([warm_up, [2, 0.75, 30], [10, 9, 30], [30, 2, 2.25]]),
    }
    monkeypatch.setattr(speed, "_step_seconds", lambda model, _: next(turns[len(decoder_layers(model))]))
    monkeypatch.setattr(speed, "_clocked_shares", lambda *_: [0.5, 0.5, 0.5])

    found = compare_speed(*pair, REMOVED, work_for(pair[0], new_tokens=2), budget_seconds=0)

    assert (found.before.prefill_latency_seconds, found.before.decode_latency_seconds) == (5, 3)
    assert (found.after.prefill_latency_seconds, found.after.decode_latency_seconds) == (2.5, 2.25)


@pytest.mark.parametrize(
    ("round_seconds", "rounds"), [(1.0, 20), (100.0, speed.FEWEST_ROUNDS), (0.0, speed.MOST_ROUNDS)]
)
def test_rounds_follow_the_budget(round_seconds: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * round_seconds)

    shares = [share for _, share in speed._rounds(20)]

    assert len(shares) == rounds
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] < 1


def test_prompt_and_new_tokens_fit_the_limit(make_tiny: Callable[..., PreTrainedModel]) -> None:
    model = make_tiny("llama", max_position_embeddings=16)

    work = work_for(model, new_tokens=32)

    assert (work.prompt.shape, work.new_tokens) == ((1, 12), 4)


def test_can_be_stopped(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    def stop(_: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        compare_speed(*pair, REMOVED, work_for(pair[0], new_tokens=2), budget_seconds=0, tick=stop)


def test_clock_counts_the_chosen_modules_only() -> None:
    readings = iter([1.0, 1.5, 4.0, 4.25])
    modules = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(3)))
    clock = LayerClock([modules[0], modules[2]], torch.device("cpu"))
    clock._mark = lambda: next(readings)

    with clock.running():
        modules(torch.zeros(1))
        assert clock.take_seconds() == 0.75
        assert clock.take_seconds() == 0
    modules(torch.zeros(1))

    assert clock.take_seconds() == 0
    assert LayerClock([], torch.device("cpu"))._mark is time.perf_counter


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_decode_what_a_whole_pass_would(family: str, make_tiny: Callable[..., PreTrainedModel]) -> None:
    model = make_tiny(family)
    text = windows()[:1]
    ids, cache = decoding.step(model, text)
    for _ in range(6):
        text = torch.cat([text, ids], dim=1)
        with torch.inference_mode():
            whole = model(input_ids=text, use_cache=False).logits[:, -1:].argmax(-1)
        ids, cache = decoding.step(model, ids, cache)
        assert torch.equal(ids, whole)
    if not family.startswith("mamba"):  # whose cache knows no length
        assert cache.get_seq_length() == text.shape[1]
