"""Stage 1: learn a weight for every layer and choose those with the smallest."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.errors import NonFiniteLoss
from elder_core.gates import gated
from elder_core.journal import Entry
from elder_core.methods.base import Chooser, Context, Selection
from elder_core.methods.elder.search import Scores, refine
from elder_core.methods.kept import optimizer_tensors, restore_optimizer
from elder_core.methods.losses import Teacher, loss_of
from elder_core.methods.mathematics import proximal_step, ranking
from elder_core.methods.training import MOST_RETURNS, RATE_AFTER_RETURN
from elder_core.parameters import ElderParameters, GateOptimizer, Loss
from elder_core.spec import GatePoint
from elder_core.surgery import bypassed, decoder_layers

# The first and last layers' gradients are hundreds of times those of the middle ones: a step size that moves the
# middle would throw a vital layer from 1 to 0 in one step, where its gradient no longer tells it to come back.
LONGEST_MOVE = 0.1
REMEDY = (
    "lower gate_learning_rate or gate_penalty, and see that the model's own loss on the calibration text is finite."
)


@dataclass(frozen=True)
class Round:
    """What one round of learning found: `weights` `[layers]` at its end, and all of them `path` `[updates, layers]`.

    `steps` were made: those updates, and the ones that did not last.
    """

    weights: Tensor
    path: Tensor
    losses: tuple[float, ...]
    steps: int

    def points(self, number: int) -> tuple[GatePoint, ...]:
        """The path as the report has it."""
        return tuple(
            GatePoint(round=number, step=step, loss=loss, weights=tuple(weights.tolist()))
            for step, (loss, weights) in enumerate(zip(self.losses, self.path, strict=True), start=1)
        )


def chooser(context: Context, parameters: ElderParameters, counts: Sequence[int]) -> Chooser:
    """Choose as many layers as any of `counts` says; one round of learning serves them all.

    With `layers_per_round`, what is learnt after the first round depends on what was removed in it: deeper selections
    begin with the rounds of shallower ones.

    Raises:
        NonFiniteLoss, Cancelled: see Method.select.
    """
    if parameters.layers_per_round is not None:
        return cache(_Rounds(context, parameters, parameters.layers_per_round, max(counts)).select)
    found = learn(context, parameters, [], counts=counts, allowed=Allowed.of(parameters, context, rounds=1))
    context.note_repetition("the layer weights", found.steps, parameters.gate_batch_size)
    ranked = ranking(found.weights, found.path)
    if not parameters.searched:
        return cache(lambda count: _selection(ranked[:count], found.weights, found.points(0)))
    scores = cache(lambda: Scores(context, parameters))

    def searched(count: int) -> Selection:
        refined = refine(scores(), ranked, count)
        exchanged = len(set(ranked[:count]) - set(refined))
        return _selection(refined, found.weights, found.points(0), exchanged=exchanged)

    return cache(searched)


class _Rounds:
    """Learn, take the `per_round` smallest weights, bypass those layers, learn again, as the paper does.

    A chosen layer keeps the weight that it was chosen by. What a deeper selection begins with is that of a shallower
    one, so every round is learnt once.
    """

    def __init__(self, context: Context, parameters: ElderParameters, per_round: int, deepest: int) -> None:
        self._context = context
        self._parameters = parameters
        self._per_round = per_round
        self._allowed = Allowed.of(parameters, context, rounds=parameters.rounds(deepest))
        self._known: dict[tuple[tuple[int, ...], int], Round] = {}

    def select(self, count: int) -> Selection:
        context, parameters = self._context, self._parameters
        layers = len(decoder_layers(context.model))
        rounds = parameters.rounds(count)
        removed: list[int] = []
        steps = 0
        weights = torch.ones(layers)
        path: list[GatePoint] = []
        for number in range(rounds):
            taken = min(self._per_round, count - len(removed))
            key = tuple(removed), taken
            if key not in self._known:
                self._known[key] = learn(
                    context,
                    parameters,
                    removed,
                    counts=(taken,),
                    allowed=self._allowed,
                    number=number,
                    rounds=rounds,
                )
            found = self._known[key]
            steps += found.steps
            active = [layer for layer in range(layers) if layer not in removed]
            weights[active] = found.weights[active]
            candidates = [layer for layer in ranking(found.weights, found.path) if layer in active]
            removed += candidates[:taken]
            path += found.points(number)
        context.note_repetition("the layer weights", steps, parameters.gate_batch_size)
        return _selection(removed, weights, tuple(path))


@dataclass(frozen=True)
class Allowed:
    """What one round of learning may use at most: `seconds` once all layers had a turn, which takes `turn` updates."""

    updates: int
    seconds: float | None
    turn: int

    @classmethod
    def of(cls, parameters: ElderParameters, context: Context, *, rounds: int) -> Allowed:
        """An equal part for each of so many."""
        turn = parameters.turn(len(decoder_layers(context.model)))
        updates = parameters.gate_updates(context.windows.shape[1], rounds, turn)
        return cls(updates, parameters.gate_seconds(rounds), turn)

    def ended(self, steps: int, seconds: float) -> bool:
        """Whether all is used after so many steps."""
        return steps >= self.updates or (self.seconds is not None and steps >= self.turn and seconds >= self.seconds)

    def expected_updates(self, steps: int, seconds: float) -> int:
        """Of the whole round, as far as can be told after so many steps."""
        if self.seconds is None:
            return self.updates
        return min(self.updates, max(steps, round(steps * self.seconds / max(seconds, 1e-9))))


def _selection(
    removed: Collection[int], weights: Tensor, path: tuple[GatePoint, ...], *, exchanged: int = 0
) -> Selection:
    """`exchanged`: how many layers of the smallest weights a search gave back for others."""
    label = "learnt weight, 1 kept to 0 removed"
    return Selection(
        removed=tuple(sorted(removed)),
        weights=tuple(weights.tolist()),
        weight_label=f"{label}; a search then exchanged {exchanged}" if exchanged else label,
        gate_path=path,
    )


def learn(
    context: Context,
    parameters: ElderParameters,
    bypass: Sequence[int],
    *,
    counts: Sequence[int],
    allowed: Allowed,
    number: int = 0,
    rounds: int = 1,
) -> Round:
    """Round `number` of `rounds`: weights from 1 on, of every layer but those in `bypass`, which are left out.

    It ends when all is used that is `allowed`, or when the smallest weights have been those of the same layers for
    `gate_patience` steps, for each of `counts`. The model's own weights get no gradients. Where the loss is no number,
    the weights go back to before the last update of those that were in effect, and on at half the rate, with a warning.

    Raises:
        NonFiniteLoss: the loss is no number before any weight has moved, or again after three returns.
        Cancelled: the caller ended the run.
    """
    layers = decoder_layers(context.model)
    weights = torch.ones(len(layers), device=context.device)
    weights[list(bypass)] = 0
    weights.requires_grad_()
    active = [layer for layer in range(len(layers)) if layer not in bypass]
    update = _UPDATES[parameters.gate_optimizer](parameters, weights)
    teacher = Teacher(context.model) if parameters.gate_loss is Loss.KL else None
    page = context.monitor.page("weights")
    turn = parameters.turn(len(active))
    patience = parameters.patience(turn)
    learning = _Learning(weights, update, _Patience(patience, counts, bypass))
    if page.recalled is not None:
        learning.restore(page.recalled)
    first = number * -(-allowed.updates // turn) * turn  # every round begins with a new turn of the layers
    with frozen(context.model):
        while not learning.settled and not allowed.ended(learning.steps, learning.seconds):
            step = first + learning.steps
            ids = context.batch(step, parameters.gate_batch_size)
            chosen = dealt(active, turn, seed=context.seed, step=step)
            loss, gradient = 0.0, torch.zeros_like(weights)
            for part in context.in_parts(ids):
                wanted = teacher(part) if teacher else None
                with bypassed(context.model, bypass), gated(layers, weights, parameters.gate, chosen):
                    found = len(part) / len(ids) * loss_of(context.model, part, parameters.gate_loss, wanted)
                loss += found.item()
                gradient += torch.autograd.grad(found, weights)[0]
            if warning := learning.step(loss, gradient, chosen, step + 1):
                context.monitor.warn(warning)
            page.offer(learning.entry)
            mean = float(weights.detach()[active].mean())
            each = allowed.expected_updates(learning.steps, learning.seconds)
            context.monitor.step(number * each + learning.steps, rounds * each, loss=loss, gate_mean=mean)
    learning.require_path()
    page.keep(learning.entry())
    most = parameters.most_gate_updates(turn)
    if learning.steps < turn:
        name, value = "gate_steps", most
        if learning.settled:
            name, value = "gate_patience", patience
        context.monitor.warn(
            f"{name} {value} ended the learning of layer weights after {learning.steps} updates, "
            f"and one turn of all layers takes {turn}, so that some were never weighted; give a larger {name}."
        )
    elif patience and not learning.settled and not (parameters.begins_a_search and learning.steps >= most):
        ended, remedy = f"gate_steps {most}", "give more gate_steps"
        if learning.steps < most:
            ended, remedy = f"gate_fraction {parameters.gate_fraction:g}", "give a larger gate_fraction or budget"
        context.monitor.warn(
            f"{ended} ended the learning of layer weights before it was settled which of them are smallest; {remedy}."
        )
    return Round(learning.path[-1], torch.stack(learning.path), tuple(learning.losses), learning.steps)


class _Learning:
    """Where a round stands: the path of the weights so far, and whether it has `settled`."""

    def __init__(self, weights: Tensor, update: _Update, patience: _Patience) -> None:
        self.path: list[Tensor] = []
        self.losses: list[float] = []
        self.settled = False
        self.steps = 0  # that were made, those that did not last among them
        self._started = time.monotonic()
        self._returns = 0
        self._first = weights.detach().cpu().clone()
        self._weights = weights
        self._update = update
        self._patience = patience

    @property
    def seconds(self) -> float:
        """Time spent on the round, without that between the end of one process and the next one's beginning."""
        return time.monotonic() - self._started

    def step(self, loss: float, gradient: Tensor, chosen: list[int], number: int) -> str | None:
        """Update number `number`: of the `chosen` weights, in effect for `loss` and its `gradient` `[layers]`.

        Where a number comes out of neither, go back to where it did at half the rate, and answer what to say of it.

        Raises:
            NonFiniteLoss: there is no update of the `chosen` weights to take back, or it is one time too many.
        """
        self.steps += 1
        if not math.isfinite(loss):
            return self._go_back(f"The loss of the layer weights became {loss} at update {number}", self._kept(chosen))
        self._update(gradient, chosen)
        weights = self._weights.detach().cpu().clone()
        if not bool(weights.isfinite().all()):
            return self._go_back(
                f"The layer weights became {float(weights[chosen].sum())} at update {number}", len(self.path)
            )
        self._note(weights, loss)
        return None

    def require_path(self) -> None:
        """Raises:
        NonFiniteLoss: no update is left of all that were made.
        """
        if not self.path:
            raise NonFiniteLoss(f"No update of the layer weights was left, out of {self.steps}; {REMEDY}")

    def _kept(self, chosen: list[int]) -> int | None:
        """How many updates of the path were made before the last that moved one of the `chosen` weights, if any did."""
        known = [self._first, *self.path]
        moved = (
            number
            for number in range(len(self.path), 0, -1)
            if not torch.equal(known[number][chosen], known[number - 1][chosen])
        )
        last = next(moved, None)
        return None if last is None else last - 1

    def _go_back(self, why: str, kept: int | None) -> str:
        """Keep so many updates of the path, and halve the rate."""
        if kept is None or self._returns == MOST_RETURNS:
            raise NonFiniteLoss(f"{why}; {REMEDY}")
        self._replay(self.path[:kept], self.losses[:kept], self._returns + 1)
        return (
            f"{why}: the weights were put back to those after {kept} updates, and learning went on at "
            f"{self._update.rate_factor:g} times the rate."
        )

    def entry(self) -> Entry:
        optimizer = self._update.optimizer
        known = {} if optimizer is None else optimizer_tensors(optimizer)
        facts = {"losses": self.losses, "returns": self._returns, "steps": self.steps, "seconds": self.seconds}
        return Entry(facts, {"path": torch.stack([self._first, *self.path]), **known})

    def restore(self, entry: Entry) -> None:
        self.steps = entry.facts["steps"]
        self._started = time.monotonic() - entry.facts["seconds"]
        self._replay(entry.tensors["path"][1:], entry.facts["losses"], entry.facts["returns"])
        if self._update.optimizer is not None:
            restore_optimizer(self._update.optimizer, entry.tensors)

    @torch.no_grad()
    def _replay(self, path: Iterable[Tensor], losses: Iterable[float], returns: int) -> None:
        """Stand at the end of this path, after so many returns, with what the optimiser knows forgotten."""
        self.path, self.losses = [], []
        self._patience.forget()
        for weights, loss in zip(path, losses, strict=True):
            self._note(weights, loss)
        self._weights.copy_(self.path[-1] if self.path else self._first)
        self._returns = returns
        self._update.rate_factor = RATE_AFTER_RETURN**returns
        if self._update.optimizer is not None:
            self._update.optimizer.state.clear()

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

    def forget(self) -> None:
        """All steps of the path so far."""
        self._chosen, self._unchanged, self._seen, self._total = [], 0, 0, 0.0

    def ended(self, weights: Tensor) -> bool:
        """Whether it has, with `weights` `[layers]` as the next step of the path."""
        if not self._steps:
            return False
        self._seen, self._total = self._seen + 1, self._total + weights.abs().double()
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


def dealt(active: list[int], hands: int, *, seed: int, step: int) -> list[int]:
    """One of `hands` parts of the layers `active`, for update number `step`: dealt anew whenever all had their turn.

    Where all layers are weighted at once they fall together: the final norm absorbs a stream that is smaller as a
    whole, so no single weight is held up. Against whole neighbours each weight has to answer for its own layer.
    """
    deal, hand = divmod(step, hands)
    order = np.random.default_rng([seed, deal]).permutation(active)
    return sorted(order[hand::hands].tolist())


class _Update(ABC):
    """What the gradient of a loss does, in place, to those of `weights` `[layers]` that were in effect."""

    optimizer: torch.optim.Optimizer | None = None
    rate_factor = 1.0

    def __init__(self, parameters: ElderParameters, weights: Tensor) -> None:
        self._parameters = parameters
        self._weights = weights

    @abstractmethod
    def __call__(self, gradient: Tensor, chosen: list[int]) -> None: ...


class _Adam(_Update):
    optimizer: torch.optim.Adam

    def __init__(self, parameters: ElderParameters, weights: Tensor) -> None:
        super().__init__(parameters, weights)
        self.optimizer = torch.optim.Adam([weights], lr=parameters.gate_rate)

    def __call__(self, gradient: Tensor, chosen: list[int]) -> None:
        weights = self._weights
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_factor * self._parameters.gate_rate
        weights.grad = gradient.clone()
        weights.grad[chosen] += self._parameters.gate_penalty * weights.detach()[chosen].sign()
        resting = weights.detach().clone()
        self.optimizer.step()
        resting[chosen] = weights.detach()[chosen]
        with torch.no_grad():
            weights.copy_(resting)  # Adam's momentum moves the others too


class _Proximal(_Update):
    def __call__(self, gradient: Tensor, chosen: list[int]) -> None:
        stepped = proximal_step(
            self._weights.detach()[chosen],
            gradient[chosen],
            learning_rate=self.rate_factor * self._parameters.gate_rate,
            penalty=self._parameters.gate_penalty,
            longest_move=LONGEST_MOVE,
        )
        with torch.no_grad():
            self._weights[chosen] = stepped


_UPDATES: dict[GateOptimizer, type[_Update]] = {GateOptimizer.PROXIMAL: _Proximal, GateOptimizer.ADAM: _Adam}
