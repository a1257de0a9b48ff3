"""Training without some layers: budgets, what goes wrong on the way, which weights learn."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import count
from math import nan
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from elder_core.architectures.architecture import Architecture
from elder_core.errors import NonFiniteLoss
from elder_core.gates import observed
from elder_core.journal import Folder, Journal
from elder_core.methods import base, baseline, losses, training
from elder_core.methods.base import Context
from elder_core.methods.losses import Teacher, frozen_copy, leaving, logits_of, loss_of
from elder_core.methods.low_rank import LowRank, low_rank, switched_off
from elder_core.methods.mathematics import centred_cosine_distance
from elder_core.methods.shortgpt import ShortGpt
from elder_core.methods.training import Fading, default_rate, train
from elder_core.monitor import Monitor, Page
from elder_core.parameters import ElderParameters, Loss, Norm, ShortGptParameters, TrainingParameters, Weights
from elder_core.surgery import bypassed, decoder_layers
from tests.unit.elder_core.families import build_tiny

REMOVED = (2, 4)
QUICK = TrainingParameters(updates=12, batch_size=2, learning_rate=3e-3)


@pytest.fixture
def context(tiny_llama: PreTrainedModel) -> Context:
    windows = torch.randint(1, 257, (64, 16), generator=torch.Generator().manual_seed(0))
    return Context(model=tiny_llama, windows=windows, seed=0, device=torch.device("cpu"), monitor=Monitor())


def logits(model: PreTrainedModel, windows: Tensor) -> Tensor:
    with torch.no_grad(), bypassed(model, REMOVED):
        found: Tensor = model(input_ids=windows, use_cache=False).logits
    return found


def test_the_default_budget_becomes_part_of_the_parameters() -> None:
    assert ElderParameters().tokens == 250_000
    assert ShortGptParameters().tokens == 0
    assert (ElderParameters(updates=3).tokens, ElderParameters(updates=3).updates) == (None, 3)
    assert ElderParameters.model_validate(ElderParameters(seconds=2).model_dump()) == ElderParameters(seconds=2)


def test_two_budgets_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="give one of tokens, updates, seconds; found tokens and updates"):
        ElderParameters(updates=3, tokens=100)


@pytest.mark.parametrize(
    ("parameters", "updates"),
    [(TrainingParameters(updates=5), 5), (TrainingParameters(tokens=100), 4), (TrainingParameters(), 0)],
)
def test_a_budget_is_used_up(context: Context, parameters: TrainingParameters, updates: int) -> None:
    assert len(train(context, parameters, REMOVED)) == updates  # of 2 sequences of 16 tokens


def test_seconds_end_training_wherever_it_is(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(0, 0.25)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    points = train(context, TrainingParameters(seconds=10), REMOVED, fading=Fading(0.5, 0.1, Norm.RELATIVE))
    assert len(points) == 20  # the clock is read twice for each update
    gates = [point.gate for point in points]
    assert gates == sorted(gates, reverse=True)
    assert 0 < gates[0] < 1
    assert gates[-1] == 0
    assert points[-1].learning_rate < max(point.learning_rate for point in points)


def test_a_batch_in_parts_gives_the_same_update(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = copy.deepcopy(context.model)
    parameters = QUICK.model_copy(update={"batch_size": 4, "updates": 3})
    whole = train(context, parameters, REMOVED)
    monkeypatch.setattr(base, "LOGITS_BYTES", 4 * 16 * 257)  # one sequence
    parts = train(Context(twin, context.windows, 0, context.device, Monitor()), parameters, REMOVED)
    assert [point.loss for point in parts] == pytest.approx([point.loss for point in whole], rel=1e-2)


def test_training_brings_the_shorter_model_near_the_dense_one(context: Context) -> None:
    with torch.no_grad():
        wanted = context.model(input_ids=context.windows, use_cache=False).logits
    before = (logits(context.model, context.windows) - wanted).square().mean()
    train(context, QUICK.model_copy(update={"updates": 40}), REMOVED)
    assert (logits(context.model, context.windows) - wanted).square().mean() < before / 2


Poison = Callable[[int, float], None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """`poison(update, factor)` multiplies the loss of that update, counted from 0, by `factor`."""
    loss_of = training.loss_of

    def set_up(*poisoned: tuple[int, float]) -> None:
        numbers = count()
        factors = dict(poisoned)

        def spoilt(*arguments: object) -> Tensor:
            spoils = torch.is_grad_enabled()  # weights are compared without gradients
            return loss_of(*arguments) * (factors.get(next(numbers), 1.0) if spoils else 1.0)  # type: ignore[arg-type]

        monkeypatch.setattr(training, "loss_of", spoilt)

    return lambda update, factor: set_up((update, factor))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e6])
def test_a_run_that_goes_wrong_is_put_back_and_goes_on_slower(context: Context, poison: Poison, factor: float) -> None:
    poison(30, factor)
    points = train(context, QUICK.model_copy(update={"updates": 40}), REMOVED)
    assert [point.update for point in points] == [*range(1, 31), *range(32, 41)]
    assert "at update 31: the weights were put back to those at 70%" in context.monitor.warnings[-1]
    assert "0.5 times the learning rate" in context.monitor.warnings[-1]
    before, after = points[29], points[30:]
    each = before.learning_rate / (1 - 29 / 40)  # by the schedule, an update with nothing left of the budget apart
    expected = [0.5 * done / 10 * each * (1 - (30 + done) / 40) for done in range(1, 10)]
    assert [point.learning_rate for point in after] == pytest.approx(expected), "the rate rises again from a tenth"
    assert all(parameter.isfinite().all() for parameter in context.model.parameters())
    assert points[-1].loss < points[0].loss


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_run_that_keeps_its_layers_is_watched_as_well(context: Context, poison: Poison, fraction: float) -> None:
    poison(30, 1e6)
    train(context, QUICK.model_copy(update={"updates": 40}), REMOVED, fading=Fading(fraction, 0.1, Norm.L2))
    assert "at update 31: the weights were put back" in context.monitor.warnings[-1]


def watched(context: Context) -> tuple[Tensor, Callable[[float, int], bool]]:
    """A weight that is watched, and `(loss, update)`, which sets its first number to the loss and asks at once."""
    learning = list(context.model.parameters())
    number = learning[0].data.view(-1)
    watch = training._Watch(learning, context, 0.1)

    def wrong(loss: float, update: int) -> bool:
        number[0] = loss
        return watch.went_wrong(loss, update, update / 100, 0.0, number[0].item)

    return learning[0].data, wrong


@pytest.mark.parametrize(
    "losses",
    [
        (2.0, 40.0),
        (*[1.0] * 10, *[2.9] * 10, 13.0),
        [2 * 1.1**update for update in range(100)],  # by 2.6 in a tenth of the budget
    ],
)
def test_losses_that_run_away_are_noticed_at_once_and_slowly(context: Context, losses: Sequence[float]) -> None:
    weight, wrong = watched(context)
    ran_away = next(loss for update, loss in enumerate(losses) if wrong(loss, update))
    assert ran_away < 50
    assert weight.view(-1)[0] < 13  # as it was when the loss was that
    assert "the weights were put back" in context.monitor.warnings[0]


def test_a_text_that_is_hard_for_the_weights_kept_as_well_is_no_divergence(context: Context) -> None:
    weight = next(context.model.parameters())
    began = weight.detach().clone()
    watch = training._Watch(list(context.model.parameters()), context, 0.1)
    asked: list[bool] = []

    def kept_has(loss: float) -> Callable[[], float]:
        return lambda: (asked.append(torch.equal(weight, began)), loss)[1]

    assert not watch.went_wrong(2.0, 0, 0.0, 0.0, kept_has(2.0))
    with torch.no_grad():
        weight.add_(1)
    assert not watch.went_wrong(40.0, 1, 0.05, 0.0, kept_has(30.0))
    assert asked == [True]
    assert torch.equal(weight, began + 1)
    assert torch.equal(watch.kept[0], began)  # by an excused loss no weights are known to be good
    assert context.monitor.warnings == []
    assert watch.went_wrong(300.0, 2, 0.06, 0.0, kept_has(2.0))


def test_weights_are_kept_where_they_are_better_than_those_kept(context: Context) -> None:
    """On one text, which may be a hard one: by their own losses the second would be the worst of all."""
    weight = next(context.model.parameters())
    watch = training._Watch(list(context.model.parameters()), context, 0.1)
    assert not watch.went_wrong(2.0, 0, 0.0, 0.0, lambda: pytest.fail("nothing has moved"))
    for update, (loss, with_kept, kept) in enumerate([(3.0, 3.5, 1), (2.4, 2.2, 1), (1.0, 1.0, 3), (1.55, 1.0, 3)], 1):
        with torch.no_grad():
            weight.fill_(update)
        assert not watch.went_wrong(loss, update, update / 10, 0.0, lambda found=with_kept: found)
        assert watch.kept[0].unique().tolist() == [kept]
    assert context.monitor.warnings == []
    assert watch.went_wrong(1.65, 5, 0.5, 0.0, lambda: 1.0)
    assert weight.unique().tolist() == [3]
    assert "put back to those at 30% of the budget" in context.monitor.warnings[-1]
    assert watch.went_wrong(1.65, 6, 0.6, 0.0, lambda: 1.0)
    assert watch.went_wrong(1.65, 7, 0.7, 0.0, lambda: 1.0)
    assert not watch.went_wrong(1.65, 8, 0.8, 0.0, lambda: 1.0)  # returns are used up, and it is only worse
    watch.judge_the_end(lambda: 1.65 if weight.unique().tolist() == [5] else 1.0)
    assert len(context.monitor.warnings) == training.MOST_RETURNS
    with torch.no_grad():
        weight.fill_(5)
    watch.judge_the_end(lambda: 1.65 if weight.unique().tolist() == [5] else 1.0)
    assert weight.unique().tolist() == [3]


def test_layers_that_leave_raise_what_may_be_expected(context: Context) -> None:
    watch = training._Watch(list(context.model.parameters()), context, 0.1)
    for update in range(12):
        assert not watch.went_wrong(0.001, update, 0.01, 1.0, lambda: pytest.fail("as expected"))
    assert not watch.went_wrong(3.0, 12, 0.02, 0.0, lambda: 3.2)
    assert not watch.went_wrong(3.0, 13, 0.03, 0.0, lambda: pytest.fail("as expected"))
    assert watch.went_wrong(50.0, 14, 0.04, 0.0, lambda: 3.2)


def test_a_penalty_that_falls_while_the_loss_rises_does_no_harm(context: Context) -> None:
    fading = Fading(0.0, 50.0, Norm.RELATIVE)
    points = train(context, QUICK.model_copy(update={"updates": 30}), REMOVED, fading=fading)
    assert points[-1].loss > 100 * points[0].loss
    assert (points[-1].penalty or 0.0) < (points[0].penalty or 0.0)
    assert context.monitor.warnings == []


def test_a_model_that_the_last_update_ruined_is_put_back(context: Context) -> None:
    before = {name: tensor.clone() for name, tensor in context.model.state_dict().items()}
    assert len(train(context, QUICK.model_copy(update={"updates": 1, "learning_rate": 100.0}), REMOVED)) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in context.model.state_dict().items())
    assert (
        "after the last update, and was 0.1329 before: the weights were put back to those at 0%"
        in (context.monitor.warnings[-1])
    )


def test_a_rate_that_stays_too_high_after_three_returns_ends_the_run(context: Context) -> None:
    with pytest.raises(NonFiniteLoss, match=r"The training loss became .* lower the learning rate"):
        train(context, QUICK.model_copy(update={"updates": 20, "learning_rate": 100.0}), REMOVED)
    assert len(context.monitor.warnings) == 3


@pytest.mark.parametrize("rate", [3e-3, 0.03, 0.1, 0.3])
@pytest.mark.parametrize("updates", [5, 12, 40])
@pytest.mark.parametrize("loss", list(Loss))
def test_whatever_the_rate_training_does_no_harm(context: Context, rate: float, updates: int, loss: Loss) -> None:
    parameters = QUICK.model_copy(update={"learning_rate": rate, "updates": updates, "loss": loss})
    teacher = Teacher(frozen_copy(context.model)) if parameters.taught else None

    @torch.no_grad()
    def mean_loss() -> float:
        with bypassed(context.model, REMOVED):
            return loss_of(context.model, context.windows, loss, teacher and teacher(context.windows)).item()

    before = mean_loss()
    train(context, parameters, REMOVED)
    assert mean_loss() < before + 0.2
    assert rate > 3e-3 or not any("put back" in warning for warning in context.monitor.warnings)


@pytest.mark.parametrize(
    ("factor", "told"), [(30.0, "after the last update, and was"), (nan, "is nan after the last update")]
)
def test_a_last_update_that_did_harm_is_taken_back(
    context: Context, monkeypatch: pytest.MonkeyPatch, factor: float, told: str
) -> None:
    weight = context.model.model.layers[0].mlp.up_proj.weight
    step, numbers = torch.optim.AdamW.step, count(1)

    def breaking(self: torch.optim.AdamW) -> None:
        step(self)
        if next(numbers) == 10:
            weight.data.mul_(factor)

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    train(context, QUICK.model_copy(update={"updates": 10}), REMOVED)
    assert all(parameter.isfinite().all() for parameter in context.model.parameters())
    assert told in context.monitor.warnings[-1]
    assert "put back to those at 90% of the budget, and training ended there; lower" in context.monitor.warnings[-1]


def test_a_budget_in_seconds_tells_of_repetition(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(0, 0.25)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    few = Context(context.model, context.windows[:8], 0, context.device, context.monitor)
    train(few, TrainingParameters(seconds=10), REMOVED)
    assert "8 sequences, so training went through it" in context.monitor.warnings[-1]


def test_what_will_not_be_trained_is_shared_with_the_teacher(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    twins: list[PreTrainedModel] = []
    monkeypatch.setattr(training, "frozen_copy", lambda *given: twins.append(frozen_copy(*given)) or twins[-1])
    monkeypatch.setattr(losses, "computes_in_bfloat16", lambda _: False)
    places = {
        name: parameter.data_ptr()
        for name, parameter in context.model.named_parameters()
        if any(f".layers.{layer}." in name for layer in REMOVED)
    }
    train(context, QUICK, REMOVED)
    train(context, QUICK, REMOVED, fading=Fading(0.5, 0.1, Norm.L2))
    for twin, shared in zip(twins, (set(places), set()), strict=True):
        found = {name for name, parameter in twin.named_parameters() if parameter.data_ptr() in places.values()}
        assert found == shared
    assert all(parameter.requires_grad for parameter in context.model.parameters())


def test_the_teacher_of_a_model_in_bfloat16_answers_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far positions too: rotary frequencies rounded to bfloat16 would turn them by another angle."""
    monkeypatch.setattr(losses, "computes_in_bfloat16", lambda _: True)
    model = build_tiny("llama", max_position_embeddings=1024).to(torch.bfloat16)
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.original_inv_freq = 1 / 10_000 ** (torch.arange(0, 8, 2) / 8)  # as it is loaded
    twin = frozen_copy(model)
    ids = torch.randint(1, 257, (1, 1024), generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits_of(twin, ids), logits_of(model, ids))
    assert twin.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_teacher_keeps_in_float32_what_the_architecture_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "computes_in_bfloat16", lambda _: True)
    monkeypatch.setattr(Architecture, "keeps_float32", lambda _, name: name.endswith("norm.weight"))
    kinds = {name: parameter.dtype for name, parameter in frozen_copy(build_tiny("llama")).named_parameters()}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {
        name for name in kinds if name.endswith("norm.weight")
    }
    assert kinds["model.embed_tokens.weight"] == torch.bfloat16


def test_a_training_that_goes_on_lets_go_of_what_it_recalled(context: Context, tmp_path: Path) -> None:
    context.monitor.journal = Journal(Folder(tmp_path), seconds=0)
    context.monitor.journal.begin("the same run")
    context.monitor.progress = lambda point: None if point.step < 5 else pytest.fail("ended")
    with pytest.raises(pytest.fail.Exception, match="ended"):
        train(context, QUICK, REMOVED)
    monitor = Monitor(journal=Journal(Folder(tmp_path), seconds=0))
    monitor.journal.begin("the same run")
    pages: list[Page] = []
    turn = monitor.page
    monitor.page = lambda what: pages.append(turn(what)) or pages[-1]  # type: ignore[method-assign, func-returns-value]
    held: list[bool] = []
    monitor.progress = lambda _: held.append(pages[0].recalled is not None)
    train(Context(context.model, context.windows, 0, context.device, monitor), QUICK, REMOVED)
    assert monitor.resumptions == 1
    assert held
    assert len(held) < 12
    assert not any(held)


def test_the_weights_kept_are_refreshed_where_they_are(context: Context) -> None:
    learning = list(context.model.parameters())
    watch = training._Watch(learning, context, 0.1)
    places = [kept.data_ptr() for kept in watch.kept]
    with torch.no_grad():
        learning[0].add_(1)
    assert not watch.went_wrong(1.0, 3, 0.5, 0.0, lambda: 2.0)
    assert [kept.data_ptr() for kept in watch.kept] == places
    assert torch.equal(watch.kept[0], learning[0])


@pytest.mark.parametrize(("weights", "copies"), [(Weights.LORA, 0), (Weights.FULL, 1)])
def test_a_baseline_that_changes_no_weight_leaves_its_teacher_to_training(
    context: Context, monkeypatch: pytest.MonkeyPatch, weights: Weights, copies: int
) -> None:
    made: list[PreTrainedModel] = []
    for module in (training, baseline):
        monkeypatch.setattr(module, "frozen_copy", lambda *given: made.append(frozen_copy(*given)) or made[-1])
    parameters = ShortGptParameters(updates=2, weights=weights, learning_rate=1e-3)
    assert len(ShortGpt(parameters).regularize(context, REMOVED)) == 2
    assert len(made) == copies


def test_a_model_whose_experts_low_rank_additions_do_not_reach_is_told_of() -> None:
    windows = torch.randint(1, 257, (8, 16), generator=torch.Generator().manual_seed(0))
    told = {}
    for family in ("llama", "mixtral"):
        monitor = Monitor()
        parameters = QUICK.model_copy(update={"weights": Weights.LORA, "updates": 1})
        train(Context(build_tiny(family), windows, 0, torch.device("cpu"), monitor), parameters, (2,))
        told[family] = [warning for warning in monitor.warnings if warning.startswith("weights lora trains")]
    assert not told["llama"]
    assert "experts that are stored fused stay as they are" in told["mixtral"][0]


def test_a_stored_model_learns_in_float32_and_its_removed_layers_stay_as_they_are(context: Context) -> None:
    context.model.to(torch.bfloat16)
    train(context, QUICK, REMOVED)
    kinds = {layer: {p.dtype for p in decoder_layers(context.model)[layer].parameters()} for layer in range(6)}
    assert kinds == {layer: {torch.bfloat16 if layer in REMOVED else torch.float32} for layer in range(6)}


def test_weights_are_put_back_to_what_they_were(context: Context, poison: Poison) -> None:
    start = [parameter.detach().clone() for parameter in context.model.parameters()]
    poison(1, float("nan"))
    steps: list[list[Tensor]] = []

    def look(_: object) -> None:
        steps.append([parameter.detach().clone() for parameter in context.model.parameters()])

    context.monitor.progress = look
    train(context, QUICK.model_copy(update={"updates": 40}), REMOVED)
    assert any(not torch.equal(a, b) for a, b in zip(start, steps[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(start, steps[1], strict=True))


def test_weights_that_an_update_broke_are_never_kept(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = context.model.model.layers[0].mlp.up_proj.weight
    step, numbers = torch.optim.AdamW.step, count()

    def breaking(self: torch.optim.AdamW) -> None:
        step(self)
        if next(numbers) == 4:  # of ten updates, after each of which weights are kept
            weight.data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    points = train(context, QUICK.model_copy(update={"updates": 10}), REMOVED)
    assert len(points) == 9
    assert len(context.monitor.warnings) == 1
    assert weight.isfinite().all()


def test_training_on_the_text_itself_needs_no_copy_of_the_model(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "frozen_copy", lambda _: pytest.fail("a copy"))
    assert len(train(context, QUICK.model_copy(update={"loss": Loss.CROSS_ENTROPY}), REMOVED)) == 12


def test_a_loss_that_is_no_number_from_the_start_is_the_jobs_fault(context: Context, poison: Poison) -> None:
    poison(0, float("nan"))
    with pytest.raises(NonFiniteLoss, match="became nan at update 1; lower the learning rate"):
        train(context, QUICK, REMOVED)


def test_a_run_that_goes_wrong_again_and_again_ends(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    loss_of, numbers = training.loss_of, count()
    monkeypatch.setattr(training, "loss_of", lambda *given: loss_of(*given) * (1.0 if next(numbers) < 2 else torch.nan))
    with pytest.raises(NonFiniteLoss, match="at update 6"):
        train(context, QUICK, REMOVED)
    assert len(context.monitor.warnings) == training.MOST_RETURNS


@pytest.fixture
def lora(context: Context) -> Iterator[TrainingParameters]:
    yield QUICK.model_copy(update={"weights": Weights.LORA, "lora_rank": 2, "updates": 30, "learning_rate": 1e-2})
    assert all(parameter.requires_grad for parameter in context.model.parameters())


def test_lora_is_merged_and_leaves_an_ordinary_model(context: Context, lora: TrainingParameters) -> None:
    names = set(context.model.state_dict())
    before = copy.deepcopy(context.model.state_dict())
    kinds = [type(module) for module in context.model.modules()]
    points = train(context, lora, REMOVED)
    after = context.model.state_dict()
    assert points[-1].loss < points[0].loss
    assert set(after) == names
    assert [type(module) for module in context.model.modules()] == kinds
    changed = {name for name in names if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".layers." in name and not any(f".layers.{layer}." in name for layer in REMOVED) for name in changed)
    name = sorted(changed)[0]
    assert torch.linalg.matrix_rank(after[name].float() - before[name].float(), rtol=1e-3) == 2


def test_a_rank_above_the_matrices_own_is_told_and_made_theirs(context: Context) -> None:
    parameters = QUICK.model_copy(update={"weights": Weights.LORA, "lora_rank": 4096})
    train(context, parameters, REMOVED)
    most = max(min(weight.shape) for weight in decoder_layers(context.model)[0].parameters() if weight.dim() == 2)
    assert context.monitor.warnings == [
        f"lora_rank is 4096, but no matrix here can have more than {most}, which was used. Give at most that."
    ]
    with low_rank(context.model, list(decoder_layers(context.model)), 4096, seed=0) as additions:
        assert max(addition.a.shape[0] for addition in additions) == most


def test_the_default_rate_falls_with_ranks_above_16_up_to_the_matrices_own(context: Context) -> None:
    rates = [
        default_rate(TrainingParameters(weights=Weights.LORA, lora_rank=rank), context.model)
        for rank in (4, 16, 32, 4096)
    ]
    assert rates == [rates[0], rates[0], rates[0] / 2, rates[0] / 2]  # the tiny model's matrices have 32 rows


def test_the_default_rate_is_lower_for_fine_tuning(context: Context) -> None:
    kl, text = TrainingParameters(), TrainingParameters(loss=Loss.CROSS_ENTROPY)
    rate = default_rate(kl, context.model)
    assert default_rate(text, context.model) < rate == default_rate(kl, context.model, gone=False)
    assert default_rate(text, context.model, gone=False) == rate  # layers that are to be pulled have to move
    matched_kl, matched_text = (one.model_copy(update={"matching": 48.0}) for one in (kl, text))
    assert default_rate(matched_kl, context.model) > rate
    assert default_rate(matched_text, context.model) == default_rate(text, context.model)
    assert default_rate(matched_text, context.model, gone=False) == default_rate(matched_kl, context.model)


def test_the_teacher_of_lora_is_the_model_without_it(context: Context) -> None:
    model = context.model
    ids = context.windows[:2]
    dense = logits_of(model, ids)
    with low_rank(model, list(decoder_layers(model)), 2, seed=0) as additions:
        for addition in additions:
            torch.nn.init.normal_(addition.b)
        teacher = Teacher(model, partial(switched_off, additions))
        assert torch.equal(teacher(ids), dense)
        logits, states = teacher.states(ids, [5])
        assert torch.equal(logits, dense)
        assert not torch.allclose(logits_of(model, ids), dense)
    with observed(decoder_layers(model), leaving, [5]) as seen:
        logits_of(model, ids)
    assert not torch.allclose(seen[5], states[5])  # the additions are merged by now


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize(("model_type", "first"), [("llama", 3), ("gpt2", 1)])
def test_lora_keeps_no_second_copy_of_the_layers(
    make_tiny: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    first: int,
    bfloat16: bool,
) -> None:
    """What the backward pass needs is made again there, and gradients are the same.

    The `first` matrices are not needed: what they read, the embeddings, gets no gradient.
    """
    model = make_tiny(model_type).eval()
    ids = torch.randint(1, 257, (2, 8), generator=torch.Generator().manual_seed(0))
    made: list[LowRank] = []
    make = LowRank._sum
    monkeypatch.setattr(LowRank, "_sum", lambda self, *given: (made.append(self), make(self, *given))[1])
    gradients = []
    for again in (True, False):
        if not again:
            monkeypatch.setattr("elder_core.methods.low_rank._made_again", lambda _: nullcontext())
        with low_rank(model, list(decoder_layers(model)), 2, seed=0) as additions:
            for addition in additions:
                torch.nn.init.normal_(addition.b, generator=torch.Generator().manual_seed(1))
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = model(input_ids=ids, use_cache=False).logits.float().square().mean()
            made.clear()
            loss.backward()  # type: ignore[no-untyped-call]
            assert len(made) == (len(additions) - first if again else 0)
            gradients.append([parameter.grad for addition in additions for parameter in addition.parameters()])
            assert all(not addition._sums for addition in additions)  # all are gone by now
            for addition in additions:
                torch.nn.init.zeros_(addition.b)  # merged as nothing
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("loss", list(Loss))
def test_matching_adds_the_distance_of_what_enters_the_layers_that_stay_and_leaves_the_last(
    context: Context, loss: Loss
) -> None:
    """Without 2 and 4 of 6 layers these are what leaves 0, 2 and 4, which enters 1, 3 and 5, and what leaves 5."""
    ids = context.batch(0, 2)
    plain = QUICK.model_copy(update={"updates": 1, "loss": loss})
    matched = plain.model_copy(update={"matching": 3.0})
    layers = decoder_layers(context.model)
    with observed(layers, leaving, range(6)) as whole:
        logits_of(context.model, ids)
    with bypassed(context.model, REMOVED), observed(layers, leaving, range(6)) as bare:
        logits_of(context.model, ids)
    distances = [centred_cosine_distance(bare[place], whole[place]).item() for place in (0, 2, 4, 5)]
    losses = []
    for parameters in (plain, matched):
        twin = Context(copy.deepcopy(context.model), context.windows, 0, context.device, Monitor())
        losses.append(train(twin, parameters, REMOVED)[0].loss)

    assert losses[1] - losses[0] == pytest.approx(3 * sum(distances) / 4, rel=1e-2)


@pytest.mark.parametrize("weights", list(Weights))
def test_matching_brings_hidden_states_nearer(context: Context, weights: Weights) -> None:
    layers = decoder_layers(context.model)
    ids = context.windows[:8]
    with observed(layers, leaving, [5]) as whole, torch.no_grad():
        context.model(input_ids=ids, use_cache=False)
    distances = []
    for matching in (0.0, 10.0):
        twin = Context(copy.deepcopy(context.model), context.windows, 0, context.device, Monitor())
        train(twin, QUICK.model_copy(update={"matching": matching, "weights": weights, "updates": 24}), REMOVED)
        with (
            bypassed(twin.model, REMOVED),
            observed(decoder_layers(twin.model), leaving, [5]) as seen,
            torch.no_grad(),
        ):
            twin.model(input_ids=ids, use_cache=False)
        distances.append(float(centred_cosine_distance(seen[5], whole[5])))

    assert distances[1] < distances[0]


def test_lora_works_where_matrices_stand_the_other_way(make_tiny: Callable[..., PreTrainedModel]) -> None:
    model = make_tiny("gpt2").eval()
    windows = torch.randint(1, 257, (8, 16), generator=torch.Generator().manual_seed(0))
    context = Context(model, windows, 0, torch.device("cpu"), Monitor())
    points = train(context, QUICK.model_copy(update={"weights": Weights.LORA, "learning_rate": 1e-2}), REMOVED)
    assert points[-1].loss < points[0].loss
