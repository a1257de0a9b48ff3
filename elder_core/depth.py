"""How many layers go, and which: the depth that keeps to a job's target, and what it is expected to cost.

Everything here is known before a weight has moved. Perplexity is measured with the layers bypassed, and with what the
method does for them at once, so without the training that follows and makes it better: a depth chosen by it is on the
safe side.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from elder_core.calibration.windows import MOST_APART, CalibrationText
from elder_core.errors import NonFiniteLoss, TargetUnreachable
from elder_core.evaluation import decoding
from elder_core.evaluation.quality import quality
from elder_core.evaluation.speed import layers_share, workload
from elder_core.job import Job
from elder_core.journal import Entry
from elder_core.methods.base import Context, Method, Selection, named_layers
from elder_core.methods.expressible import chooser, most_removable
from elder_core.sizes import saved_sizes
from elder_core.spec import DepthTrial, Expected
from elder_core.surgery import bypassed, decoder_layers
from elder_core.target import MOST_INCREASE

SPEED_SECONDS = 2.0  # of measuring, at least 4 rounds
NEIGHBOURS = 2  # depths beyond the first that fails, since perplexity need not grow with every layer


def choose(job: Job, method: Method, context: Context) -> Selection:
    """The layers to remove where the spec says how many.

    Raises:
        UnsupportedArchitecture, NonFiniteLoss, Cancelled: see expressible.chooser.
    """
    if job.spec.layers is not None:
        return named_layers(job.spec.layers)
    assert job.count is not None
    return chooser(method, context, (job.count,))(job.count)


def choose_with_cost(job: Job, method: Method, context: Context, text: CalibrationText) -> tuple[Selection, Expected]:
    """The layers to remove, for a target as many as keep to it, and what that is expected to cost.

    Raises:
        TargetUnreachable: no number of layers keeps to the target; the message names the nearest.
        UnsupportedArchitecture, NonFiniteLoss, Cancelled: see expressible.chooser.
    """
    scale = _Scale(job, method, context, text)
    target = job.spec.target
    if target is None:
        selection = choose(job, method, context)
    else:
        most = most_removable(context.model)
        if not most:
            raise TargetUnreachable(
                f"No layer can be removed from this {context.model.config.model_type} model of {scale.layers}: its "
                "config has no words for what would remain.",
                loc=("target",),
            )
        if target.max_perplexity_increase is not None:
            selection = _within_perplexity(method, context, scale, target.max_perplexity_increase, most)
        elif target.min_speedup is not None:
            count = fewest_for_speed(target.min_speedup, scale.share, scale.layers, most)
            selection = chooser(method, context, (count,))(count)
        else:
            _check_bytes(job, most)
            selection = choose(job, method, context)
    return selection, scale.expected(selection)


def _check_bytes(job: Job, most: int) -> None:
    """Raises:
    TargetUnreachable: more layers would have to go than the `most` that can.
    """
    assert job.count is not None
    assert job.spec.target is not None
    if job.count > most:
        sizes = saved_sizes(job.source.info, job.spec.output)
        size = sizes.without(sizes.least_saving(most))
        raise TargetUnreachable(
            f"No more than {most} layers of this model can be removed, since its config has no words for what would "
            f"remain; the weights then take up to {size:,} bytes, above max_bytes {job.spec.target.max_bytes:,}. Give "
            f"{size:,} or more, or a smaller output.dtype.",
            loc=("target", "max_bytes"),
        )


class _Scale:
    """What a model costs without some of its layers, measured once for each set."""

    def __init__(self, job: Job, method: Method, context: Context, text: CalibrationText) -> None:
        self.layers = len(decoder_layers(context.model))
        self._job = job
        self._method = method
        self._context = context
        self._kept_apart = len(text.apart) > 0
        self._windows: Tensor = text.apart if self._kept_apart else text.learning[:MOST_APART]
        self.trials: dict[int, DepthTrial] = {}
        self.before = self._perplexity(())
        by_speed = job.spec.target is not None and job.spec.target.min_speedup is not None
        self._share = self._layers_share() if job.spec.evaluation.speed or by_speed else None

    @property
    def share(self) -> float:
        """The share of a decoding step that all layers take together."""
        assert self._share is not None
        return self._share

    def increase(self, selection: Selection) -> float:
        """By what share perplexity grows without the layers of `selection`; infinite where it is no number."""
        count = len(selection.removed)
        if count not in self.trials:
            try:
                found: float | None = self._perplexity(selection.removed)
            except NonFiniteLoss:
                found = None
            self.trials[count] = DepthTrial(layers=count, perplexity=found)
        after = self.trials[count].perplexity
        return math.inf if after is None else after / self.before - 1

    def expected(self, selection: Selection) -> Expected:
        """What the job is told of `selection` before a weight moves."""
        self.increase(selection)
        count = len(selection.removed)
        return Expected(
            layers=count,
            perplexity_before=self.before,
            perplexity_after=self.trials[count].perplexity,
            sequences=len(self._windows),
            kept_apart=self._kept_apart,
            decode_speedup=None if self._share is None else ideal_speedup(self._share, count, self.layers),
            bytes_on_disk=saved_sizes(self._job.source.info, self._job.spec.output).without(selection.removed),
            tried=tuple(self.trials[tried] for tried in sorted(self.trials)),
        )

    def _perplexity(self, removed: tuple[int, ...]) -> float:
        with self._method.made_up_for(self._context, removed), bypassed(self._context.model, removed):
            return quality(
                self._context.model, self._windows, 1.0, tick=self._tick, page=self._context.monitor.page("perplexity")
            ).perplexity

    def _layers_share(self) -> float:
        """Measured once: a run that goes on would find another, and ask for another number of layers."""
        page = self._context.monitor.page("share")
        if page.recalled is not None:
            return float(page.recalled.facts["share"])
        model = self._context.model
        work = workload(self._windows, limit=decoding.max_positions(model), device=model.device)
        share = layers_share(model, work, budget_seconds=SPEED_SECONDS, tick=self._tick)
        page.keep(Entry({"share": share}))
        return share

    def _tick(self, _: float) -> None:
        self._context.monitor.check_cancelled()


def ideal_speedup(share: float, count: int, layers: int) -> float:
    """How many times as fast decoding can be without `count` of `layers` alike that take `share` of a step together."""
    return 1 / (1 - share * count / layers)


def fewest_for_speed(wanted: float, share: float, layers: int, most: int) -> int:
    """The fewest of `layers` whose removal can make decoding `wanted` times as fast.

    Raises:
        TargetUnreachable: without as many as can be removed, `most`, it is slower.
    """
    for count in range(1, most + 1):
        if ideal_speedup(share, count, layers) >= wanted:
            return count
    nearest = ideal_speedup(share, most, layers)
    remedy = f"Give {_floor(nearest):g} or less" if _floor(nearest) > 1 else "Name the number of layers instead"
    raise TargetUnreachable(
        f"Without {most} of {layers} layers, as many as can be removed, decoding can be {nearest:.4g} times as fast on "
        f"this machine, where layers take {share:.0%} of a step; min_speedup is {wanted:g}. {remedy}.",
        loc=("target", "min_speedup"),
    )


def deepest(depths: int, keeps: Callable[[int], bool]) -> int:
    """The largest of 1 to `depths` for which `keeps` is true, 0 if there is none, in about log2(depths) questions.

    By bisection, then the two depths beyond the first that fails, and the two beyond each of them that does not.
    """
    found, fails = 0, depths + 1
    while fails - found > 1:
        middle = (found + fails) // 2
        found, fails = (middle, fails) if keeps(middle) else (found, middle)
    depth = fails
    while depth < min(depths, fails + NEIGHBOURS):
        depth += 1
        if keeps(depth):
            found = fails = depth
    return found


def _within_perplexity(method: Method, context: Context, scale: _Scale, allowed: float, depths: int) -> Selection:
    """The selection of the most layers, up to `depths`, without which perplexity grows by no more than `allowed`."""
    selected = chooser(method, context, range(1, depths + 1))

    def keeps(count: int) -> bool:
        increase = scale.increase(selected(count))
        context.monitor.step(len(scale.trials), depths, **({"growth": increase} if math.isfinite(increase) else {}))
        return increase <= allowed

    found = deepest(depths, keeps)
    if found:
        return selected(found)
    least, count = min((scale.increase(selected(count)), count) for count in scale.trials)
    remedy = "Name the number of layers"
    if least <= MOST_INCREASE:
        remedy = f"Give {_ceil(least):g} or more, or name the number of layers"
    raise TargetUnreachable(
        f"max_perplexity_increase is {allowed:g}, but of all depths tried the least that perplexity grows by, before "
        f"any training, is {_ceil(least):g}, without {count} of {scale.layers} layers. {remedy}, since training makes "
        "up for some of it.",
        loc=("target", "max_perplexity_increase"),
    )


def _ceil(value: float) -> float:
    """To four digits, and never less: a limit that can be given again."""
    digits = 3 - math.floor(math.log10(value)) if value > 0 and math.isfinite(value) else 0
    return math.ceil(value * 10**digits) / 10**digits if math.isfinite(value) else value


def _floor(value: float) -> float:
    """To three decimals, and never more."""
    return math.floor(value * 1000) / 1000
