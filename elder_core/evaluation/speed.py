"""How fast a model reads a prompt and decodes, and how fast it could be without the removed layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import torch

from elder_core.evaluation import decoding
from elder_core.evaluation.layer_clock import LayerClock
from elder_core.spec import Ideal
from elder_core.surgery import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEWEST_ROUNDS = 4
MOST_ROUNDS = 60


@dataclass(frozen=True)
class Speed:
    """Of one model, batch 1. Latencies in seconds; the rates follow from them."""

    prefill_tokens_per_second: float
    prefill_latency_seconds: float
    decode_tokens_per_second: float
    decode_latency_seconds: float

    @classmethod
    def of(cls, prefill: float, decode: float, *, prompt_tokens: int) -> Speed:
        """From the two latencies."""
        return cls(prompt_tokens / prefill, prefill, 1 / decode, decode)


@dataclass(frozen=True)
class SpeedComparison:
    before: Speed
    after: Speed
    ideal: Ideal


@dataclass(frozen=True)
class Workload:
    """`prompt` `[1, p]`, read at once, then `new_tokens` decoded one by one."""

    prompt: torch.Tensor
    new_tokens: int


@dataclass
class _Times:
    """Seconds of every step of one contender, or a share of them, gathered over the rounds."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def add(self, steps: Sequence[float]) -> None:
        self.prefill.append(steps[0])
        self.decode.extend(steps[1:])

    def speed(self, prompt_tokens: int) -> Speed:
        return Speed.of(median(self.prefill), median(self.decode), prompt_tokens=prompt_tokens)

    def speed_beside(self, other: _Times, prompt_tokens: int) -> Speed:
        """As the ratio to `other` has it, which took the same steps in the same rounds."""
        prefill, decode = _beside(self.prefill, other.prefill), _beside(self.decode, other.decode)
        return Speed.of(prefill, decode, prompt_tokens=prompt_tokens)

    def ideal(self) -> Ideal:
        """Of shares instead of seconds."""
        return Ideal(
            prefill_speedup=1 / (1 - median(self.prefill)),
            decode_speedup=1 / (1 - median(self.decode)),
        )


def workload(windows: torch.Tensor, *, limit: int | None, device: torch.device, new_tokens: int = 16) -> Workload:
    """The start of the first of `windows` `[n, seq]`, short enough that the new tokens fit the model's `limit` too."""
    fitting = new_tokens if limit is None else max(1, min(new_tokens, limit // 4))
    longest = windows.shape[1] if limit is None else min(windows.shape[1], limit - fitting)
    return Workload(windows[:1, :longest].to(device, torch.long), fitting)


def compare_speed(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    removed: Sequence[int],
    work: Workload,
    *,
    budget_seconds: float = 20.0,
    tick: Callable[[float], None] = lambda _: None,
) -> SpeedComparison:
    """Time both models on the same `work`, in turns, so that a slow moment of the machine meets both.

    A round is one turn of each of three contenders: the dense model, the dense model with clocks around the
    layers in `removed`, and the pruned model; the next round has the reverse order. One untimed turn of each model
    warms up; then rounds follow until `budget_seconds` are spent, but from 4 to 60. On CUDA every step is synchronised.

    The dense model's latencies are medians. The pruned model's are those medians times the median ratio of a step's
    time to that of the same step of the same round, so that what is told of the speed-up follows from that ratio: on a
    machine with slow moments it varied half as much as the ratio of two medians, or less (docs/log.md).

    The ideal comes from the clocked turns alone. With s the median over steps of (time within the removed layers /
    time of the whole step), measured in the same step, it is dense / (dense − removed) = 1 / (1 − s). The clocks cost
    about 6 µs a layer, most of it within the layer's own time, which raises the ideal by some 0.2 % where a layer takes
    0.5 ms; it is not corrected. The dense model's own speed is taken without clocks.

    `tick` gets the share that is done, after every turn, and may raise to stop.
    """
    clock = LayerClock([decoder_layers(dense)[index] for index in removed], dense.device)
    before, after, shares = _Times(), _Times(), _Times()
    turns: list[Callable[[], None]] = [
        lambda: before.add(list(_step_seconds(dense, work))),
        lambda: shares.add(_clocked_shares(dense, work, clock)),
        lambda: after.add(list(_step_seconds(pruned, work))),
    ]
    _warm_up((dense, pruned), work)
    _take(turns, budget_seconds, tick)
    prompt_tokens = work.prompt.shape[1]
    return SpeedComparison(before.speed(prompt_tokens), after.speed_beside(before, prompt_tokens), shares.ideal())


def time_alone(
    model: PreTrainedModel,
    removed: Sequence[int],
    work: Workload,
    *,
    budget_seconds: float = 20.0,
    tick: Callable[[float], None] = lambda _: None,
) -> tuple[Speed, Ideal]:
    """Time one `model`, and what would be ideal without its layers `removed`; otherwise as `compare_speed`.

    Latencies are medians. What is compared with them later meets another moment of the machine: `compare_speed` is to
    be preferred where both models fit.
    """
    clock = LayerClock([decoder_layers(model)[index] for index in removed], model.device)
    times, shares = _Times(), _Times()
    turns: list[Callable[[], None]] = [lambda: times.add(list(_step_seconds(model, work)))]
    if removed:
        turns.append(lambda: shares.add(_clocked_shares(model, work, clock)))
    _warm_up((model,), work)
    _take(turns, budget_seconds, tick)
    ideal = shares.ideal() if removed else Ideal(prefill_speedup=1.0, decode_speedup=1.0)
    return times.speed(work.prompt.shape[1]), ideal


def layers_share(
    model: PreTrainedModel,
    work: Workload,
    *,
    budget_seconds: float,
    tick: Callable[[float], None] = lambda _: None,
) -> float:
    """The share of a decoding step that all decoder layers take together, from 0 to 1: the median over steps.

    Without n of L layers that are alike, decoding can become 1 / (1 − share · n / L) times as fast, as in
    `compare_speed`. Rounds follow until `budget_seconds` are spent, but from 4 to 60. `tick` as there.
    """
    clock = LayerClock(list(decoder_layers(model)), model.device)
    shares: list[float] = []
    _warm_up((model,), work)
    for _, share_done in _rounds(budget_seconds):
        shares += _clocked_shares(model, work, clock)[1:]
        tick(share_done)
    tick(1.0)
    return median(shares)


def _beside(own: Sequence[float], other: Sequence[float]) -> float:
    """The median of `other`, times the median of own / other, step by step."""
    return median(other) * median(mine / theirs for mine, theirs in zip(own, other, strict=True))


def _warm_up(models: Sequence[PreTrainedModel], work: Workload) -> None:
    """One turn each that does not count."""
    for model in models:
        for _ in _step_seconds(model, work):
            pass


def _take(turns: Sequence[Callable[[], None]], budget_seconds: float, tick: Callable[[float], None]) -> None:
    """Let the contenders take turns until the budget is spent, in every second round in the reverse order."""
    for index, share_done in _rounds(budget_seconds):
        for turn in turns if index % 2 == 0 else reversed(turns):
            turn()
            tick(share_done)
    tick(1.0)


def _rounds(budget_seconds: float) -> Iterator[tuple[int, float]]:
    """Number the rounds, with the share done before each, until the budget is spent and the fewest are run."""
    started, share, index = time.monotonic(), 0.0, 0
    while share < 1:
        yield index, share
        index += 1
        spent = (time.monotonic() - started) / budget_seconds if budget_seconds else 1.0
        share = max(min(spent, index / FEWEST_ROUNDS), index / MOST_ROUNDS)


def _step_seconds(model: PreTrainedModel, work: Workload) -> Iterator[float]:
    """Seconds of the prefill, then of each decoded token."""
    ids, cache = work.prompt, None
    for _ in range(1 + work.new_tokens):
        started = _now(model.device)
        ids, cache = decoding.step(model, ids, cache)
        yield _now(model.device) - started


def _clocked_shares(model: PreTrainedModel, work: Workload, clock: LayerClock) -> list[float]:
    """The clocked layers' share of each step, prefill first."""
    with clock.running():
        return [clock.take_seconds() / whole for whole in _step_seconds(model, work)]


def _now(device: torch.device) -> float:
    """Seconds, once the device has finished all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
