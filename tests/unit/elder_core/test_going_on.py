"""A run that is ended again and again, and goes on from its journal, ends with the bytes of one left in peace."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from elder_core import depth, pipeline
from elder_core.disk import file_sha256
from elder_core.errors import Cancelled
from elder_core.inspection import Sources
from elder_core.journal import Folder, Journal
from elder_core.methods import training
from elder_core.parameters import (
    ElderParameters,
    EvoPressParameters,
    Gate,
    GateOptimizer,
    MethodParameters,
    PruneCompParameters,
    ReplaceMeParameters,
    SlebParameters,
    UidlParameters,
    Weights,
)
from elder_core.spec import JobSpec, Progress, Report, Stage, Target
from tests.unit.elder_core.test_pipeline import quick_spec

SHORT = {"updates": 6, "batch_size": 2}
SCORED = {"scoring_samples": 4, "scoring_batch_size": 1}
QUICK = ElderParameters(gate_steps=6, gate_batch_size=2, search_samples=4, **SHORT)
METHODS: dict[str, MethodParameters] = {
    "elder": QUICK,
    "faded": QUICK.model_copy(update={"anneal_fraction": 0.5}),
    "low rank": QUICK.model_copy(update={"weights": Weights.LORA}),
    "as the paper words it": QUICK.model_copy(
        update={"gate": Gate.OUTPUT, "gate_optimizer": GateOptimizer.ADAM, "layers_per_round": 1}
    ),
    "sleb": SlebParameters(**SCORED, **SHORT),
    "uidl": UidlParameters(**SCORED),
    "evopress": EvoPressParameters(generations=4, offspring=4, survivors=2, first_samples=1, **SCORED, **SHORT),
    "prune&comp": PruneCompParameters(**SCORED, **SHORT),
    "replaceme": ReplaceMeParameters(**SCORED, **SHORT),
}


@pytest.fixture
def spec(tiny_checkpoint: Path, tmp_path: Path) -> JobSpec:
    return quick_spec(tiny_checkpoint, tmp_path, QUICK, samples=6)


class Run:
    """One process's part of a run: it is ended at its step number `last`, having seen `steps`."""

    def __init__(self, spec: JobSpec, folder: Path, last: int | None = None, *, saves: bool = True) -> None:
        self.steps: list[Progress] = []
        self._spec = spec
        self._folder = folder
        self._last = last
        self._saves = saves

    def __call__(self) -> Report:
        shutil.rmtree(self._folder / "model", ignore_errors=True)  # each process has a folder of its own
        return pipeline.run(
            self._spec,
            model_dir=self._folder / "model",
            report_dir=self._folder / "report",
            sources=Sources(allow_paths=True),
            device="cpu",
            progress=self.steps.append,
            cancelled=self._ended,
            journal=Journal(Folder(self._folder / "journal"), seconds=3600, stopping=lambda: self._saves),
        )

    def _ended(self) -> bool:
        return self._last is not None and len(self.steps) >= self._last


def interrupted(spec: JobSpec, folder: Path, steps: int) -> tuple[Report, list[Run]]:
    """The run in parts: each ends `steps` after the furthest that any has come."""
    parts: list[Run] = []
    while True:
        parts.append(Run(spec, folder, last=steps * (len(parts) + 1)))
        try:
            return parts[-1](), parts
        except Cancelled:
            assert len(parts) < 200, "it never ends"


def bytes_of(folder: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted((folder / "model").iterdir())}


def found(report: Report) -> Report:
    """What a run found, without its times."""
    return report.model_copy(
        update={"created_at": None, "stage_seconds": {}, "resumptions": 0, "peak_memory_bytes": 0, "environment": None}
    )


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_ends_with_the_same_bytes(spec: JobSpec, tmp_path: Path, method: MethodParameters) -> None:
    spec = spec.model_copy(update={"method": method})
    whole = Run(spec, tmp_path / "whole")
    report = whole()
    again, parts = interrupted(spec, tmp_path / "parts", 5)

    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")
    assert found(again) == found(report)
    assert 2 <= again.resumptions < len(parts)
    assert report.resumptions == 0


def test_the_same_with_a_target_that_is_measured(spec: JobSpec, tmp_path: Path) -> None:
    spec = spec.model_copy(update={"layers_to_remove": None, "target": Target(max_perplexity_increase=5.0)})
    report = Run(spec, tmp_path / "whole")()
    again, _ = interrupted(spec, tmp_path / "parts", 5)

    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")
    assert found(again) == found(report)


def test_speed_is_measured_once(spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured anew it would be another, and ask for another number of layers than what is kept was found for."""
    shares = itertools.chain([0.6], itertools.repeat(0.3))
    monkeypatch.setattr(depth, "layers_share", lambda *_, **__: next(shares))
    changes = {"layers_to_remove": None, "target": Target(min_speedup=1.25), "method": METHODS["uidl"]}
    report, parts = interrupted(spec.model_copy(update=changes), tmp_path, 2)

    assert len(parts) > 3
    assert len(report.removed_layers) == 2
    assert report.expected is not None
    assert report.expected.decode_speedup == pytest.approx(1.25)


def test_no_update_that_was_kept_is_made_again(spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[int] = Counter()
    gradient = training._Run._gradient

    def counted(self: training._Run, optimizer: torch.optim.Optimizer, update: int, gate: float) -> object:
        made[update] += 1
        return gradient(self, optimizer, update, gate)

    monkeypatch.setattr(training._Run, "_gradient", counted)
    interrupted(spec, tmp_path, 3)

    assert made == Counter(range(6))


def test_a_loss_that_runs_away_is_met_as_in_one_run(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The good weights that the run goes back to, and the rate, come out of the journal too."""
    gradient = training._Run._gradient

    def broken(
        self: training._Run, optimizer: torch.optim.Optimizer, update: int, gate: float
    ) -> tuple[float, float | None]:
        loss, penalty = gradient(self, optimizer, update, gate)
        return (float("nan") if update == 3 else loss), penalty

    monkeypatch.setattr(training._Run, "_gradient", broken)
    report = Run(spec, tmp_path / "whole")()
    again, _ = interrupted(spec, tmp_path / "parts", 4)

    assert any("were put back" in warning for warning in report.warnings)
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")
    assert found(again) == found(report)


def test_a_budget_of_seconds_counts_those_of_all_parts(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def tick() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(training.time, "monotonic", tick)
    spec = spec.model_copy(update={"method": QUICK.model_copy(update={"updates": None, "seconds": 60.0})})
    whole = Run(spec, tmp_path / "whole")()
    again, parts = interrupted(spec, tmp_path / "parts", 6)

    assert len(parts) > 3
    assert abs(len(again.training) - len(whole.training)) <= len(parts)


def test_another_spec_does_not_go_on_from_it(spec: JobSpec, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        Run(spec, tmp_path, last=20)()
    other = Run(spec.model_copy(update={"seed": 1}), tmp_path)

    assert other().resumptions == 0


def test_without_time_to_keep_anything_it_begins_anew_and_ends_the_same(spec: JobSpec, tmp_path: Path) -> None:
    Run(spec, tmp_path / "whole")()
    with pytest.raises(Cancelled):
        Run(spec, tmp_path / "parts", last=8, saves=False)()
    report = Run(spec, tmp_path / "parts")()

    assert report.resumptions == 0
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_the_time_of_each_stage_is_that_of_all_parts(spec: JobSpec, tmp_path: Path) -> None:
    report, _ = interrupted(spec, tmp_path, 4)

    assert set(report.stage_seconds) == set(Stage)
    assert all(seconds >= 0 for seconds in report.stage_seconds.values())
