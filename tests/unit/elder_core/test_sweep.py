"""Several depths of one model: what they share, what each leaves behind, how a sweep ends early."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from elder_core import checkpoints, devices, execution, pipeline
from elder_core.__main__ import app
from elder_core.checkpoints import verify
from elder_core.errors import AmbiguousTarget, Cancelled, DuplicateLayers, ElderError, NoLayerLeft, OutputExists
from elder_core.evaluation import evaluate as evaluation_module
from elder_core.inspection import Sources
from elder_core.methods.base import Chooser, Context
from elder_core.methods.shortgpt import ShortGpt
from elder_core.parameters import ElderParameters, ShortGptParameters
from elder_core.pipeline import Sweep
from elder_core.spec import CalibrationSpec, EvaluationSpec, JobSpec, ModelRef, Progress, Report, Stage
from tests.unit.elder_core.test_pipeline import write_text

SOURCES = Sources(allow_paths=True)


@pytest.fixture
def spec(tiny_checkpoint: Path, tmp_path: Path) -> JobSpec:
    return JobSpec(
        model=ModelRef(id=str(tiny_checkpoint)),
        method=ShortGptParameters(updates=2),
        calibration=CalibrationSpec(source=str(write_text(tmp_path / "calibration.txt", 0)), sequence_length=16),
        evaluation=EvaluationSpec(
            source=str(write_text(tmp_path / "test.txt", 1)), samples=4, speed=False, generation=False
        ),
    )


def sweep(spec: JobSpec, out: Path, **arguments: object) -> Sweep:
    return pipeline.sweep(spec, out=out, sources=SOURCES, device="cpu", **arguments)


def test_every_depth_is_what_a_run_of_it_alone_gives(spec: JobSpec, tmp_path: Path) -> None:
    found = sweep(spec, tmp_path / "out", ratios=(0.5,), counts=(1,))
    assert [len(depth.removed_layers) for depth in found.depths] == [1, 3]
    assert Sweep.model_validate_json((tmp_path / "out/sweep.json").read_text()) == found
    for depth, removal in zip(found.depths, ({"layers_to_remove": 1}, {"ratio": 0.5}), strict=True):
        folder = tmp_path / "out" / depth.folder
        verify(folder)
        report = Report.model_validate_json((folder / "report.json").read_text())
        assert report.evaluation == depth.evaluation
        assert set(report.stage_seconds) == set(Stage)
        alone = spec.model_copy(update=removal)
        expected = pipeline.run(
            alone, model_dir=tmp_path / depth.folder, report_dir=tmp_path / "r", sources=SOURCES, device="cpu"
        )
        assert report.spec == expected.spec
        assert report.training == expected.training
        assert report.evaluation == expected.evaluation
        weights = [load_file(path / "model.safetensors") for path in (folder, tmp_path / depth.folder)]
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["removed-1", "removed-3", "sweep.json"]


def test_what_does_not_depend_on_the_depth_is_done_once(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    measured: list[int] = []

    def chooser(self: ShortGpt, context: Context, counts: Sequence[int]) -> Chooser:
        asked.append(list(counts))
        return choosing(self, context, counts)

    choosing = ShortGpt.chooser
    before = evaluation_module.quality

    def quality(model: torch.nn.Module, *given: object, **named: object) -> object:
        measured.append(len(model.model.layers))
        return before(model, *given, **named)  # type: ignore[arg-type]

    resolved = checkpoints.resolve
    resolving: list[object] = []
    monkeypatch.setattr(checkpoints, "resolve", lambda *given: resolving.append(given) or resolved(*given))
    monkeypatch.setattr(ShortGpt, "chooser", chooser)
    monkeypatch.setattr(evaluation_module, "quality", quality)
    found = sweep(spec, tmp_path / "out", counts=(3, 1, 2))
    assert asked == [[1, 2, 3]]
    assert measured == [6, 5, 4, 3]
    assert len(resolving) == 1
    assert len({depth.evaluation.before.perplexity for depth in found.depths}) == 1


@pytest.mark.parametrize("ending", ["cancelled", "failed"])
def test_a_sweep_that_ends_early_leaves_what_is_done_whole(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    reports: list[Report] = []
    seen: list[Progress] = []
    if ending == "failed":
        evaluate = execution.evaluate

        def failing(*given: object, **named: object) -> object:
            if reports:
                raise OutputExists("the disk is full")
            return evaluate(*given, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(execution, "evaluate", failing)
    with pytest.raises(Cancelled if ending == "cancelled" else OutputExists):
        sweep(
            spec,
            tmp_path / "out",
            counts=(1, 2),
            finished=reports.append,
            progress=seen.append,
            cancelled=lambda: ending == "cancelled" and bool(reports) and seen[-1].stage is Stage.EVALUATING,
        )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["removed-1", "sweep.json"]
    verify(tmp_path / "out/removed-1")
    told = Sweep.model_validate_json((tmp_path / "out/sweep.json").read_text())
    assert [depth.folder for depth in told.depths] == ["removed-1"]


@pytest.mark.parametrize(
    ("changes", "depths", "error"),
    [
        ({"ratio": 0.5}, {"counts": (1,)}, AmbiguousTarget),
        ({}, {}, AmbiguousTarget),
        ({}, {"counts": (3,), "ratios": (0.5,)}, DuplicateLayers),
        ({}, {"counts": (1, 6)}, NoLayerLeft),
    ],
)
def test_depths_that_make_no_sweep_are_refused(
    spec: JobSpec, tmp_path: Path, changes: dict[str, float], depths: dict[str, object], error: type[ElderError]
) -> None:
    with pytest.raises(error):
        sweep(spec.model_copy(update=changes), tmp_path / "out", **depths)
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_ended_early_goes_on_as_it_would_have(spec: JobSpec, tmp_path: Path) -> None:
    """What is learnt for all depths depends on which they are, those that are done among them."""
    method = ElderParameters(updates=1, gate_steps=60, gate_patience=2)
    spec = spec.model_copy(update={"method": method})
    whole = sweep(spec, tmp_path / "whole", counts=(1, 2, 3))
    reports: list[Report] = []
    with pytest.raises(Cancelled):
        sweep(spec, tmp_path / "out", counts=(1, 2, 3), finished=reports.append, cancelled=lambda: bool(reports))
    first = (tmp_path / "out/removed-1/model.safetensors").stat().st_mtime_ns
    found = sweep(spec, tmp_path / "out", counts=(1, 2, 3), finished=reports.append)
    assert [len(report.removed_layers) for report in reports] == [1, 2, 3]
    assert (tmp_path / "out/removed-1/model.safetensors").stat().st_mtime_ns == first
    assert [depth.removed_layers for depth in found.depths] == [depth.removed_layers for depth in whole.depths]
    for depth in found.depths:
        weights = [load_file(tmp_path / out / depth.folder / "model.safetensors") for out in ("whole", "out")]
        assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert sweep(spec, tmp_path / "out", counts=(2,)) == found


def test_something_else_where_a_depth_would_go_is_refused_before_any_work(spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "out/removed-2").mkdir(parents=True)
    (tmp_path / "out/removed-2/precious").touch()
    seen: list[Progress] = []
    with pytest.raises(OutputExists):
        sweep(spec, tmp_path / "out", counts=(1, 2), progress=seen.append)
    assert {point.stage for point in seen} == {Stage.RESOLVING}


@pytest.mark.parametrize(("selecting", "expected"), [(900, 900), (50, 100)])
def test_every_report_has_the_peak_memory_of_choosing_too(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selecting: int, expected: int
) -> None:
    """As on CUDA, where the counter is set back whenever the model is loaded."""
    loads: list[object] = []
    monkeypatch.setattr(devices, "reset_peak_memory", loads.append)
    monkeypatch.setattr(devices, "peak_memory_bytes", lambda _: selecting if len(loads) == 1 else 100)
    reports: list[Report] = []
    sweep(spec, tmp_path / "out", counts=(1, 2), finished=reports.append)
    assert [report.peak_memory_bytes for report in reports] == [expected, expected]


def test_the_remaining_depths_join_those_that_are_done(spec: JobSpec, tmp_path: Path) -> None:
    first = sweep(spec, tmp_path / "out", counts=(1, 3))
    both = sweep(spec, tmp_path / "out", counts=(2,))
    assert [depth.folder for depth in both.depths] == ["removed-1", "removed-2", "removed-3"]
    assert both.depths[::2] == first.depths
    assert Sweep.model_validate_json((tmp_path / "out/sweep.json").read_text()) == both
    shutil.rmtree(tmp_path / "out/removed-1")
    told = sweep(spec, tmp_path / "out", counts=(4,))
    assert [depth.folder for depth in told.depths] == ["removed-2", "removed-3", "removed-4"]


def test_a_depth_that_is_told_of_and_was_never_there_is_made(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the process is killed just before a folder takes its place."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(spec, tmp_path / "out", counts=(1,))
    assert [depth.folder for depth in sweep(spec, tmp_path / "out", counts=(1,)).depths] == ["removed-1"]
    verify(tmp_path / "out/removed-1")


@pytest.mark.parametrize("other", ["model", "method", "text", "unreadable"])
def test_a_sweep_of_something_else_is_refused_before_any_work(
    spec: JobSpec, tmp_path: Path, tiny_checkpoint: Path, other: str
) -> None:
    sweep(spec, tmp_path / "out", counts=(1,))
    file = tmp_path / "out/sweep.json"
    if other == "model":
        copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
        (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
        spec = spec.model_copy(update={"model": ModelRef(id=str(copy))})
    elif other == "text":
        write_text(Path(spec.calibration.source), 7)
    elif other == "method":
        spec = spec.model_copy(update={"method": ShortGptParameters(updates=3)})
    else:
        file.write_text("{}")
    before = file.read_text()
    seen: list[Progress] = []
    with pytest.raises(OutputExists, match={"unreadable": "cannot be read"}.get(other, f"other.* {other}")):
        sweep(spec, tmp_path / "out", counts=(2,), progress=seen.append)
    assert {point.stage for point in seen} == {Stage.RESOLVING}
    assert file.read_text() == before


def test_the_command_prints_a_table(spec: JobSpec, tmp_path: Path) -> None:
    options = ["--model", spec.model.id, "--method", "shortgpt", "--ratios", "0.2,0.5", "--out", str(tmp_path / "out")]
    texts = ["--calibration", spec.calibration.source, "--evaluation", spec.evaluation.source]
    settings = ["calibration.sequence_length=16", "evaluation.speed=false", "evaluation.generation=false"]
    result = CliRunner().invoke(app, ["sweep", *options, *texts, *(f"--set={one}" for one in settings)])
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"removed-1", "removed-3", "sweep.json"}
    wrong = CliRunner().invoke(app, ["sweep", *options[:4], "--counts", "1,x", "--out", "unused"])
    assert wrong.exit_code == 2
