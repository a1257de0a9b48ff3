"""Training a model to do without some of its layers: what all methods that train have in common.

The layers are bypassed from the first update on, or leave slowly (`Fading`): that is stage 2 of ELDeR. Either way the
model is trained at the cost of what is left of it, and what comes out is as good as its shorter self.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from elder_core.errors import NonFiniteLoss
from elder_core.gates import gated, observed
from elder_core.journal import Entry
from elder_core.methods.base import Context
from elder_core.methods.kept import numbered, optimizer_tensors, overwrite, restore_optimizer
from elder_core.methods.losses import Teacher, frozen_copy, leaving, loss_of
from elder_core.methods.low_rank import low_rank, most_rank, reached, switched_off
from elder_core.methods.mathematics import annealed_gate, centred_cosine_distance, delta_norm, learning_rate_at
from elder_core.parameters import Gate, Loss, Norm, TrainingParameters, Weights
from elder_core.spec import TrainingPoint
from elder_core.surgery import bypassed, decoder_layers, parameters_only_in

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
# Of AdamW with full weights: what one update adds to a layer's output grows with the number of its inputs, so the best
# rate falls with the width (arXiv 2203.03466). The constants were measured on the bundled model, 192 wide: docs/log.md.
RATE_TIMES_WIDTH = 0.13
RATE_TIMES_WIDTH_MATCHED = 0.19  # where hidden states are matched beside KL, which bears larger steps then
RATE_TIMES_WIDTH_FINE_TUNING = 0.02  # where the text's own tokens teach, and layers are gone: they do not have to move
LORA_RATE_FACTOR = 10
LORA_RANK_AT_FULL_RATE = 16  # a step of a higher rank adds up over it, so its rate is lower
REACHED_BY_LORA = 0.9  # of a layer's matrices, below which it is told

ROUNDING = 1e-9
KEPT_SHARE = 0.1  # of the budget, between two states that a failing run may be put back to
MOST_RETURNS = 3
RATE_AFTER_RETURN = 0.5
UPDATES_TO_FULL_RATE = 10  # after a return, when the optimiser's first steps, with no memory, would be the longest
RECENT = 10  # updates


@dataclass(frozen=True)
class _Margin:
    """How far above another a loss may be, by a factor and in nats."""

    factor: float
    nats: float

    def above(self, loss: float) -> float:
        """The most that is not yet too far above `loss`."""
        return self.factor * loss + self.nats


DIVERGED = _Margin(3.0, 1.0)  # from one update to the next
WORSE = _Margin(1.5, 0.1)  # where weights might be kept
HARMED = _Margin(1.0, 0.05)  # at the end


@dataclass(frozen=True)
class Fading:
    """The layers' weights fall evenly from 1 to 0 over the first `fraction` of the budget; 0 leaves them at 1.

    While they are computed, `penalty` times the sum of their Δ's `norm` is added to the loss. They are not in the last
    part of the budget, the share `recovery` of it.
    """

    fraction: float
    penalty: float
    norm: Norm
    recovery: float = 0.0

    def gate(self, share: float) -> float:
        """The layers' weight once `share` of the budget is used."""
        return annealed_gate(share, self.fraction, self.recovery)


def train(
    context: Context,
    parameters: TrainingParameters,
    removed: Collection[int],
    *,
    fading: Fading | None = None,
    teacher: Teacher | None = None,
) -> tuple[TrainingPoint, ...]:
    """Train `context.model` without the layers `removed`, which stay in it; None for `fading` bypasses them at once.

    `teacher` is what KL is measured from; None takes the model as it is at the beginning. A loss that is no number,
    or that runs away, puts the weights back to the last good ones and goes on at half the rate, with a warning.

    Raises:
        NonFiniteLoss: the loss is no number before any weight has moved, or again after three returns.
        Cancelled: the caller ended the run.
    """
    budget = Budget.of(parameters, context.windows.shape[1])
    if budget.nothing:
        return ()
    run = _Run(context, parameters, removed, fading, budget)
    with run.weights(teacher):
        return tuple(run.updates())


@dataclass
class Budget:
    """What training may use: a number of updates, or of seconds from the first update on."""

    updates: int | None
    seconds: float | None

    @classmethod
    def of(cls, parameters: TrainingParameters, length: int) -> Budget:
        """That of `parameters`, on sequences of `length` tokens."""
        if parameters.seconds is not None:
            return cls(None, float(parameters.training_share) * parameters.seconds)
        return cls(parameters.training_updates(length), None)

    @property
    def nothing(self) -> bool:
        return not self.updates and not self.seconds

    def shares(self, update: int, elapsed_seconds: float) -> tuple[float, float]:
        """The share that is used before and, as far as can be told, after `update` (from 0)."""
        if self.updates:
            return update / self.updates, (update + 1) / self.updates
        assert self.seconds
        each = elapsed_seconds / update if update else 0.01 * self.seconds
        return min(elapsed_seconds / self.seconds, 1.0), min((elapsed_seconds + each) / self.seconds, 1.0)

    def expected_updates(self, update: int, share: float) -> int:
        """Of the whole run, after `update` of them used `share`."""
        return self.updates or max(update, round(update / max(share, 0.01)))


class _Run:
    """One training. `weights` prepares the model and puts it in order again; `updates` are made in between."""

    def __init__(
        self,
        context: Context,
        parameters: TrainingParameters,
        removed: Collection[int],
        fading: Fading | None,
        budget: Budget,
    ) -> None:
        self._context = context
        self._model = context.model
        self._parameters = parameters
        self._removed = removed
        self._fading = fading
        self._budget = budget
        self._peak = parameters.learning_rate or default_rate(parameters, context.model, gone=fading is None)
        layers = range(len(decoder_layers(self._model)))
        self._matched = tuple(layer for layer in layers if layer + 1 not in removed)
        self._learning: list[nn.Parameter] = []
        self._teacher: Teacher | None = None

    @contextmanager
    def weights(self, teacher: Teacher | None) -> Iterator[None]:
        """The model with the weights that learn: its own in float32, or a low-rank addition that is merged at last."""
        with ExitStack() as stack:
            own: Teacher | None = None
            if self._parameters.weights is Weights.LORA:
                layers = decoder_layers(self._model)
                chosen = [layer for index, layer in enumerate(layers) if self._fading or index not in self._removed]
                if (share := reached(chosen)) < REACHED_BY_LORA:
                    self._context.monitor.warn(
                        f"weights lora trains additions to {share:.0%} of the numbers in the layers' matrices: experts "
                        "that are stored fused stay as they are. Give weights as full to train all of them."
                    )
                rank = self._parameters.lora_rank
                if (most := most_rank(chosen)) < rank:
                    self._context.monitor.warn(
                        f"lora_rank is {rank}, but no matrix here can have more than {most}, which was used. Give at "
                        "most that."
                    )
                additions = stack.enter_context(low_rank(self._model, chosen, rank, seed=self._context.seed))
                self._learning = [parameter for addition in additions for parameter in addition.parameters()]
                own = Teacher(self._model, partial(switched_off, additions))
            else:
                idle = [] if self._fading else parameters_only_in(self._model, self._removed)
                if teacher is None and self._parameters.taught:
                    own = Teacher(frozen_copy(self._model, idle))
                self._learning = _without(self._model.parameters(), idle)
                for tensor in [*self._learning, *self._model.buffers()]:
                    if tensor.is_floating_point():
                        tensor.data = tensor.data.float()  # small updates would be lost in bfloat16 weights
            self._teacher = (teacher or own) if self._parameters.taught else None
            yield

    def updates(self) -> list[TrainingPoint]:
        """Make the updates that are left of the budget, and tell of all of them."""
        if self._budget.updates:
            self._context.note_repetition("training", self._budget.updates, self._parameters.batch_size)
        page = self._context.monitor.page("training")
        state = _State(self._learning, self._peak, _Watch(self._learning, self._context, self._peak))
        if page.recalled is not None:
            state.restore(page.recalled)
            page.recalled = None  # with both moments and the weights kept it is four times as large as what learns
        before, after = self._budget.shares(state.update, state.seconds)
        while before < 1:
            loss, gate = self._update(state, before, after)
            page.offer(state.entry)
            self._report(state, after, loss, gate)
            before, after = self._budget.shares(state.update, state.seconds)
        gate = 0.0 if self._fading is None else self._fading.gate(1.0)
        state.watch.judge_the_end(partial(self._objective_now, state.update - 1, gate))
        if self._budget.seconds:
            self._context.note_repetition("training", state.update, self._parameters.batch_size)
        page.keep(state.entry(finished=True))
        return state.points

    def _update(self, state: _State, before: float, after: float) -> tuple[float, float]:
        """One update, which uses the budget from the share `before` to `after`; its loss, and weight of the layers.

        Where the loss went wrong the weights go back instead.
        """
        gate = 0.0 if self._fading is None else self._fading.gate(after)
        rate = learning_rate_at(before, after, self._peak * state.watch.factor_of(state.update))
        loss, penalty = self._gradient(state.optimizer, state.update, gate)
        objective, now = self._objective(loss, penalty), partial(self._objective_now, state.update, gate)
        if state.watch.went_wrong(objective, state.update, before, gate, now):
            state.optimizer.state.clear()
        else:
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.optimizer.step()
            state.points.append(
                TrainingPoint(update=state.update + 1, loss=loss, penalty=penalty, gate=gate, learning_rate=rate)
            )
        state.update += 1
        return loss, gate

    def _gradient(self, optimizer: torch.optim.Optimizer, update: int, gate: float) -> tuple[float, float | None]:
        """Loss and penalty of this update's batch; their gradient, clipped to norm 1, is left in the parameters.

        The loss is infinite where the gradient is no number.
        """
        optimizer.zero_grad(set_to_none=True)
        ids = self._context.batch(update, self._parameters.batch_size)
        loss, penalty = 0.0, 0.0
        for part in self._context.in_parts(ids):
            share = len(part) / len(ids)
            found, norms = self._loss(part, gate)
            pull = sum(norms.values(), torch.zeros((), device=self._context.device))
            objective = found if self._fading is None else found + self._fading.penalty * pull
            (share * objective).backward()  # type: ignore[no-untyped-call]
            loss, penalty = loss + share * found.item(), penalty + share * pull.item()
        norm = torch.nn.utils.clip_grad_norm_(self._learning, CLIP_NORM)
        if not math.isfinite(loss) or not bool(norm.isfinite()):
            return (loss if not math.isfinite(loss) else math.inf), None
        return loss, penalty if gate > 0 else None

    def _objective(self, loss: float, penalty: float | None) -> float:
        """What is minimised."""
        return loss if self._fading is None or penalty is None else loss + self._fading.penalty * penalty

    @torch.no_grad()
    def _objective_now(self, update: int, gate: float) -> float:
        """That of the update's batch with the weights as they are now."""
        ids = self._context.batch(update, self._parameters.batch_size)
        total = 0.0
        for part in self._context.in_parts(ids):
            loss, norms = self._loss(part, gate)
            penalty = sum(norm.item() for norm in norms.values())
            total += len(part) / len(ids) * self._objective(loss.item(), penalty)
        return total

    def _loss(self, ids: Tensor, gate: float) -> tuple[Tensor, dict[int, Tensor]]:
        """The scalar loss on `ids` `[batch, seq]`, and the norms of Δ; see _weighted."""
        loss, matching = self._parameters.loss, self._parameters.matching
        places = self._matched if matching else ()
        logits, states = (None, {}) if self._teacher is None else self._teacher.states(ids, places)
        with (
            self._weighted(gate) as norms,
            observed(decoder_layers(self._model), leaving, places) as seen,
        ):
            found = loss_of(self._model, ids, loss, logits)
        for place in places:
            found = found + matching / len(places) * centred_cosine_distance(seen[place], states[place])
        return found, norms

    @contextmanager
    def _weighted(self, gate: float) -> Iterator[dict[int, Tensor]]:
        """The model with weight `gate` on the removed layers; yields the norms of their Δ, none once `gate` is 0."""
        if self._fading is None or gate == 0:
            with bypassed(self._model, self._removed):
                yield {}
            return
        layers = decoder_layers(self._model)
        weights = torch.full((len(layers),), gate, device=self._context.device)
        look = partial(delta_norm, norm=self._fading.norm)
        fading = self._removed if gate < 1 else ()
        with observed(layers, look, self._removed) as norms, gated(layers, weights, Gate.RESIDUAL, fading):
            yield norms

    def _report(self, state: _State, share: float, loss: float, gate: float) -> None:
        tokens = state.update * self._parameters.batch_size * self._context.windows.shape[1]
        self._context.monitor.step(
            state.update,
            self._budget.expected_updates(state.update, share),
            loss=loss,
            gate=gate,
            tokens_per_second=tokens / state.seconds,
        )


class _State:
    """Where a training stands. With its entry in the journal another process goes on as this one would have."""

    def __init__(self, learning: list[nn.Parameter], rate: float, watch: _Watch) -> None:
        self.learning = learning
        self.optimizer = torch.optim.AdamW(learning, lr=rate, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
        self.watch = watch
        self.update = 0
        self.points: list[TrainingPoint] = []
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the first update, without that between the end of one process and the next one's beginning."""
        return time.monotonic() - self._started

    def entry(self, *, finished: bool = False) -> Entry:
        """All of it; once `finished`, the weights alone."""
        facts = {
            "update": self.update,
            "seconds": self.seconds,
            "points": [point.model_dump() for point in self.points],
        }
        tensors = numbered("weight", self.learning)
        if not finished:
            facts |= {"watch": self.watch.facts()}
            tensors |= numbered("kept", self.watch.kept) | optimizer_tensors(self.optimizer)
        return Entry(facts, tensors)

    def restore(self, entry: Entry) -> None:
        self.update = entry.facts["update"]
        self.points = [TrainingPoint.model_validate(point) for point in entry.facts["points"]]
        self._started = time.monotonic() - entry.facts["seconds"]
        overwrite(self.learning, "weight", entry.tensors)
        if "watch" in entry.facts:
            self.watch.restore(entry.facts["watch"], entry.tensors)
            restore_optimizer(self.optimizer, entry.tensors)


class _Watch:
    """Keeps the best weights, and puts them back when a run goes wrong. `rate_factor` halves with each return.

    Weights are compared by their losses on one batch, and with the same weight of the layers that leave: what one
    batch's loss is above another's may come of the text.
    """

    def __init__(self, learning: list[nn.Parameter], context: Context, rate: float) -> None:
        self.rate_factor = 1.0
        self._rate = rate
        self._returned_at: int | None = None
        self._learning = learning
        self._context = context
        self._returns = 0
        self._recent: list[float] = []  # what losses may be expected to be like; at most RECENT of them
        self._least_mean = math.inf  # that RECENT of them had
        self._gate = 0.0  # that they were found at
        self._kept_at = 0.0
        self._judged_at = 0.0
        self.kept = [parameter.detach().to("cpu", copy=True) for parameter in learning]

    def factor_of(self, update: int) -> float:
        """What the rate of this update is multiplied by."""
        if self._returned_at is None:
            return self.rate_factor
        return self.rate_factor * min(1.0, (update - self._returned_at) / UPDATES_TO_FULL_RATE)

    def went_wrong(self, loss: float, update: int, share: float, gate: float, loss_now: Callable[[], float]) -> bool:
        """Whether this update's loss is no number or has run away; if so the weights are the last good ones again.

        It is asked before the update is made, so that weights are kept by whose own loss they were good. A loss far
        above the others may come of the text, or of layers that have left since, by another `gate`: it has run away
        if it is far above that of the weights kept, too, which `loss_now` computes of the same text. After every tenth
        of the budget that is looked at in any case, since a loss may climb slowly.

        Raises:
            NonFiniteLoss: nothing has moved yet, or it is one time too many.
        """
        if self._is_as_expected(loss):
            self._expect(loss, gate)
            judged = share >= self._judged_at + KEPT_SHARE - ROUNDING
            if not (judged and self._became_worse(loss, share, loss_now)) or self._returns == MOST_RETURNS:
                return False  # what is only worse, the end judges again
        elif not self._ran_away(loss, gate, loss_now):
            return False
        if update == 0 or self._returns == MOST_RETURNS:
            raise NonFiniteLoss(
                f"The training loss became {loss:.4g} at update {update + 1}; lower the learning rate, which was "
                f"{self._rate:.2g}, or the penalty, and see that the model's loss on the calibration text is finite."
            )
        self.rate_factor *= RATE_AFTER_RETURN
        self._returned_at = update
        self._return(
            f"The training loss became {loss:.4g} at update {update + 1}",
            f"training went on at {self.rate_factor:g} times the learning rate",
        )
        return True

    def judge_the_end(self, loss_now: Callable[[], float]) -> None:
        """Put the weights kept back after the last update, whose batch `loss_now` computes the loss of, if better."""
        finite = all(bool(parameter.isfinite().all()) for parameter in self._learning)
        if finite and not self._recent:  # put back just now, or finished before
            return
        loss = loss_now() if finite else math.nan
        if loss <= HARMED.above(with_kept := self._with_kept(loss_now)):
            return
        self._return(
            f"The training loss is {loss:.4g} after the last update, and was {with_kept:.4g} before",
            f"training ended there; lower learning_rate, which was {self._rate:.2g}, or give more updates",
        )

    def facts(self) -> dict[str, object]:
        """All that it knows but the weights that it keeps."""
        return {
            "rate_factor": self.rate_factor,
            "returns": self._returns,
            "returned_at": self._returned_at,
            "recent": self._recent,
            "least_mean": self._least_mean,
            "gate": self._gate,
            "kept_at": self._kept_at,
            "judged_at": self._judged_at,
        }

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.rate_factor, self._returns = facts["rate_factor"], facts["returns"]
        self._returned_at = facts["returned_at"]
        self._recent, self._least_mean = facts["recent"], facts["least_mean"]
        self._gate, self._kept_at, self._judged_at = facts["gate"], facts["kept_at"], facts["judged_at"]
        overwrite(self.kept, "kept", tensors)

    def _is_as_expected(self, loss: float) -> bool:
        if not math.isfinite(loss) or not self._recent:
            return math.isfinite(loss)
        known = self._least_mean if math.isfinite(self._least_mean) else min(self._recent)
        return loss <= DIVERGED.above(known)

    def _ran_away(self, loss: float, gate: float, loss_now: Callable[[], float]) -> bool:
        """Whether the weights kept do far better. If not, what they do on this text is what may be expected."""
        if not math.isfinite(loss) or loss > DIVERGED.above(with_kept := self._with_kept(loss_now)):
            return True
        if gate != self._gate:
            self._recent, self._least_mean = [], math.inf
        self._expect(with_kept, gate)
        return False

    def _became_worse(self, loss: float, share: float, loss_now: Callable[[], float]) -> bool:
        """Whether the weights kept do much better. If they do no better, those that did this are kept instead."""
        self._judged_at = share
        with_kept = self._with_kept(loss_now)
        if loss <= with_kept:
            self._keep()
            self._kept_at = share
        return loss > WORSE.above(with_kept)

    def _with_kept(self, loss_now: Callable[[], float]) -> float:
        """What `loss_now` answers with the weights kept; infinite where that is no number."""
        self._exchange()
        loss = loss_now()
        self._exchange()
        return loss if math.isfinite(loss) else math.inf

    def _expect(self, loss: float, gate: float) -> None:
        self._recent, self._gate = [*self._recent[-RECENT + 1 :], loss], gate
        if len(self._recent) == RECENT:
            self._least_mean = min(self._least_mean, fmean(self._recent))

    def _return(self, why: str, then: str) -> None:
        with torch.no_grad():
            for parameter, kept in zip(self._learning, self.kept, strict=True):
                parameter.copy_(kept)
        self._recent, self._least_mean = [], math.inf
        self._returns += 1
        self._context.monitor.warn(
            f"{why}: the weights were put back to those at {self._kept_at:.0%} of the budget, and {then}."
        )

    @torch.no_grad()
    def _exchange(self) -> None:
        """Let the weights and those kept change places."""
        for parameter, kept in zip(self._learning, self.kept, strict=True):
            held = parameter.to("cpu", copy=True)
            parameter.copy_(kept)
            kept.copy_(held)

    @torch.no_grad()
    def _keep(self) -> None:
        for parameter, kept in zip(self._learning, self.kept, strict=True):
            kept.copy_(parameter)


def _without(parameters: Iterable[nn.Parameter], idle: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Those of `parameters` that learn and are not among the `idle`."""
    known = {id(parameter) for parameter in idle}
    return [parameter for parameter in parameters if parameter.requires_grad and id(parameter) not in known]


def default_rate(parameters: TrainingParameters, model: PreTrainedModel, *, gone: bool = True) -> float:
    """Peak learning rate where none is given; `gone`: whether the layers are, from the first update on."""
    constant = RATE_TIMES_WIDTH_MATCHED if parameters.matching else RATE_TIMES_WIDTH
    if gone and parameters.loss is Loss.CROSS_ENTROPY:
        constant = RATE_TIMES_WIDTH_FINE_TUNING
    rate = constant / float(model.config.get_text_config().hidden_size)
    if parameters.weights is Weights.LORA:
        rank = min(parameters.lora_rank, most_rank(list(decoder_layers(model))))
        rate *= LORA_RATE_FACTOR * min(1.0, LORA_RANK_AT_FULL_RATE / max(1, rank))
    return rate
