"""Stage 1: learn a weight for every layer and choose those with the smallest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.gates import gated
from elder_core.journal import Entry
from elder_core.methods.base import Chooser, Context, Selection
from elder_core.methods.elder.search import refine
from elder_core.methods.kept import optimizer_tensors, restore_optimizer
from elder_core.methods.losses import Teacher, loss_of, require_finite
from elder_core.methods.mathematics import proximal_step, ranking
from elder_core.parameters import ElderParameters, GateOptimizer, Loss
from elder_core.spec import GatePoint
from elder_core.surgery import bypassed, decoder_layers

# The first and last layers' gradients are hundreds of times those of the middle ones: a step size that moves the
# middle would throw a vital layer from 1 to 0 in one step, where its gradient no longer tells it to come back.
LONGEST_MOVE = 0.1


@dataclass(frozen=True)
class Round:
    """What one round of learning found: `weights` `[layers]` at its end, and all of them `path` `[steps, layers]`."""

    weights: Tensor
    path: Tensor
    losses: tuple[float, ...]

    def points(self, number: int) -> tuple[GatePoint, ...]:
        """The path as the report has it."""
        return tuple(
            GatePoint(round=number, step=step, loss=loss, weights=tuple(weights.tolist()))
            for step, (loss, weights) in enumerate(zip(self.losses, self.path, strict=True), start=1)
        )


def chooser(context: Context, parameters: ElderParameters, counts: Sequence[int]) -> Chooser:
    """Choose as many layers as any of `counts` says; one round of learning serves them all.

    With `layers_per_round`, what is learnt after the first round depends on what was removed in it, and so each
    count is a selection of its own.

    Raises:
        NonFiniteLoss, Cancelled: see Method.select.
    """
    per_round = parameters.layers_per_round
    if per_round is not None:
        return cache(lambda count: _in_rounds(context, parameters, count, per_round))
    with frozen(context.model):
        context.note_repetition("the layer weights", parameters.gate_steps, parameters.gate_batch_size)
        found = learn(context, parameters, [], counts=counts)
    ranked = ranking(found.weights, found.path)
    return cache(lambda count: _selection(refine(context, parameters, ranked, count), found.weights, found.points(0)))


def _in_rounds(context: Context, parameters: ElderParameters, count: int, per_round: int) -> Selection:
    """Learn, take the smallest weights, bypass those layers, learn again, as the paper does.

    A chosen layer keeps the weight that it was chosen by.
    """
    layers = len(decoder_layers(context.model))
    rounds = -(-count // per_round)
    context.note_repetition("the layer weights", rounds * parameters.gate_steps, parameters.gate_batch_size)
    removed: list[int] = []
    weights = torch.ones(layers)
    path: list[GatePoint] = []
    with frozen(context.model):
        for number in range(rounds):
            taken = min(per_round, count - len(removed))
            found = learn(context, parameters, removed, counts=(taken,), number=number, rounds=rounds)
            active = [layer for layer in range(layers) if layer not in removed]
            weights[active] = found.weights[active]
            candidates = [layer for layer in ranking(found.weights, found.path) if layer in active]
            removed += candidates[:taken]
            path += found.points(number)
    return _selection(removed, weights, tuple(path))


def _selection(removed: Collection[int], weights: Tensor, path: tuple[GatePoint, ...]) -> Selection:
    return Selection(
        removed=tuple(sorted(removed)),
        weights=tuple(weights.tolist()),
        weight_label="learnt weight, 1 kept to 0 removed",
        gate_path=path,
    )


def learn(
    context: Context,
    parameters: ElderParameters,
    bypass: list[int],
    *,
    counts: Sequence[int],
    number: int = 0,
    rounds: int = 1,
) -> Round:
    """Round `number` of `rounds`: weights from 1 on, of every layer but those in `bypass`, which are left out.

    It ends after `gate_steps`, or when the smallest weights have been those of the same layers for `gate_patience`
    steps, for each of `counts`.
    """
    layers = decoder_layers(context.model)
    weights = torch.ones(len(layers), device=context.device)
    weights[bypass] = 0
    weights.requires_grad_()
    active = [layer for layer in range(len(layers)) if layer not in bypass]
    update = _UPDATES[parameters.gate_optimizer](parameters, weights)
    teacher = Teacher(context.model) if parameters.gate_loss is Loss.KL else None
    page = context.monitor.page("weights")
    learning = _Learning(weights, update, _Patience(parameters.gate_patience, counts, bypass))
    if page.recalled is not None:
        learning.restore(page.recalled)
    first = number * parameters.gate_steps
    for step in range(first + len(learning.losses), first + parameters.gate_steps):
        if learning.settled:
            break
        ids = context.batch(step, parameters.gate_batch_size)
        chosen = dealt(active, parameters.gate_share, seed=context.seed, step=step)
        wanted = teacher(ids) if teacher else None
        with bypassed(context.model, bypass), gated(layers, weights, parameters.gate, chosen):
            loss = loss_of(context.model, ids, parameters.gate_loss, wanted)
        require_finite(loss.detach(), "The loss of the layer weights", step + 1)
        learning.step(loss, chosen)
        page.offer(learning.entry)
        mean = float(learning.path[-1][active].mean())
        context.monitor.step(step + 1, rounds * parameters.gate_steps, loss=loss.item(), gate_mean=mean)
    page.keep(learning.entry())
    return Round(learning.path[-1], torch.stack(learning.path), tuple(learning.losses))


class _Learning:
    """Where a round stands: the path of the weights so far, and whether it has `settled`."""

    def __init__(self, weights: Tensor, update: _Update, patience: _Patience) -> None:
        self.path: list[Tensor] = []
        self.losses: list[float] = []
        self.settled = False
        self._weights = weights
        self._update = update
        self._patience = patience

    def step(self, loss: Tensor, chosen: list[int]) -> None:
        """One update of the `chosen` weights, by the gradient of `loss`."""
        self._update(loss, chosen)
        self._note(self._weights.detach().cpu().clone(), loss.item())

    def entry(self) -> Entry:
        optimizer = self._update.optimizer
        known = {} if optimizer is None else optimizer_tensors(optimizer)
        return Entry({"losses": self.losses}, {"path": torch.stack(self.path), **known})

    def restore(self, entry: Entry) -> None:
        for weights, loss in zip(entry.tensors["path"], entry.facts["losses"], strict=True):
            self._note(weights, loss)
        with torch.no_grad():
            self._weights.copy_(self.path[-1])
        if self._update.optimizer is not None:
            restore_optimizer(self._update.optimizer, entry.tensors)

    def _note(self, weights: Tensor, loss: float) -> None:
        self.path.append(weights)
        self.losses.append(loss)
        self.settled = self._patience.ended(weights)


class _Patience:
    """Knows when the ranking has settled: the first layers of it have been the same ones for so many steps."""

    def __init__(self, steps: int, counts: Sequence[int], bypass: Collection[int]) -> None:
        self._steps = steps
        self._counts = counts
        self._bypass = bypass
        self._chosen: list[frozenset[int]] = []
        self._unchanged = 0
        self._seen = 0
        self._total: Tensor | float = 0.0  # over the path, so that a step does not cost more the longer the path is

    def ended(self, weights: Tensor) -> bool:
        """Whether it has, with `weights` `[layers]` as the next step of the path."""
        if not self._steps:
            return False
        self._seen, self._total = self._seen + 1, self._total + weights.double()
        mean = self._total / self._seen
        ranked = [layer for layer in ranking(weights, mean[None]) if layer not in self._bypass]
        chosen = [frozenset(ranked[:count]) for count in self._counts]
        self._unchanged = self._unchanged + 1 if chosen == self._chosen else 0
        self._chosen = chosen
        return self._unchanged >= self._steps


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradients for the model's own weights until the context is left: only the layer weights learn."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def dealt(active: list[int], share: float, *, seed: int, step: int) -> list[int]:
    """About `share` of the layers `active`, for update number `step`: they are dealt anew whenever all had their turn.

    Where all layers are weighted at once they fall together: the final norm absorbs a stream that is smaller as a
    whole, so no single weight is held up. Against whole neighbours each weight has to answer for its own layer.
    """
    hands = min(len(active), round(1 / share))
    deal, hand = divmod(step, hands)
    order = np.random.default_rng([seed, deal]).permutation(active)
    return sorted(order[hand::hands].tolist())


class _Update(ABC):
    """What one loss does, in place, to those of `weights` `[layers]` that were in effect."""

    optimizer: torch.optim.Optimizer | None = None

    def __init__(self, parameters: ElderParameters, weights: Tensor) -> None:
        self._parameters = parameters
        self._weights = weights

    @abstractmethod
    def __call__(self, loss: Tensor, chosen: list[int]) -> None: ...


class _Adam(_Update):
    optimizer: torch.optim.Adam

    def __init__(self, parameters: ElderParameters, weights: Tensor) -> None:
        super().__init__(parameters, weights)
        self.optimizer = torch.optim.Adam([weights], lr=parameters.gate_learning_rate)

    def __call__(self, loss: Tensor, chosen: list[int]) -> None:
        weights = self._weights
        self.optimizer.zero_grad()
        (loss + self._parameters.gate_penalty * weights[chosen].abs().sum()).backward()  # type: ignore[no-untyped-call]
        resting = weights.detach().clone()
        self.optimizer.step()
        resting[chosen] = weights.detach()[chosen]
        with torch.no_grad():
            weights.copy_(resting)  # Adam's momentum moves the others too


class _Proximal(_Update):
    def __call__(self, loss: Tensor, chosen: list[int]) -> None:
        (gradient,) = torch.autograd.grad(loss, self._weights)
        stepped = proximal_step(
            self._weights.detach()[chosen],
            gradient[chosen],
            learning_rate=self._parameters.gate_learning_rate,
            penalty=self._parameters.gate_penalty,
            longest_move=LONGEST_MOVE,
        )
        with torch.no_grad():
            self._weights[chosen] = stepped


_UPDATES: dict[GateOptimizer, type[_Update]] = {GateOptimizer.PROXIMAL: _Proximal, GateOptimizer.ADAM: _Adam}
