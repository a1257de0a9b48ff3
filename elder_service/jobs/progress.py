"""How much of a job is done, as one number."""

from __future__ import annotations

from elder_core.spec import Progress, Stage

# Share of the whole at which a stage begins, from runs of the default job; an estimate, only for people.
_BEGINS = {
    Stage.RESOLVING: 0.0,
    Stage.CALIBRATING: 0.01,
    Stage.LOADING: 0.03,
    Stage.SELECTING: 0.05,
    Stage.REGULARIZING: 0.25,
    Stage.PRUNING: 0.75,
    Stage.EXPORTING: 0.76,
    Stage.EVALUATING: 0.78,
}
_ORDER = [*_BEGINS.values(), 1.0]


def fraction_done(progress: Progress) -> float:
    begin = _BEGINS[progress.stage]
    end = next(value for value in _ORDER if value > begin)
    within = progress.step / progress.total if progress.total else 0.0
    return round(begin + (end - begin) * min(within, 1.0), 4)
