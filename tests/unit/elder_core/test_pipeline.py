"""A whole run on a tiny model: what it writes, what it refuses, how it is ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from elder_core import devices, pipeline, reporting
from elder_core.checkpoints import verify
from elder_core.errors import (
    CalibrationTooSmall,
    Cancelled,
    DeviceUnavailable,
    ElderError,
    InvalidCheckpoint,
    LayersNotNamed,
    LayersOutOfRange,
    ModelNotFound,
    NoLayerLeft,
    OutOfMemory,
    OutputExists,
    SequenceTooLong,
    TextEmpty,
    TextNotFound,
    TextOverlap,
    TextTooShort,
)
from elder_core.inspection import Sources
from elder_core.parameters import CutParameters, ElderParameters, MethodParameters, ShortGptParameters
from elder_core.spec import CalibrationSpec, EvaluationSpec, JobSpec, ModelRef, Progress, Report, Stage, Target

SOURCES = Sources(allow_paths=True)
QUICK = ElderParameters(gate_steps=2, gate_batch_size=2, updates=2, batch_size=2)


def write_text(path: Path, seed: int, *, length: int = 1_000) -> Path:
    letters = torch.randint(97, 123, (length,), generator=torch.Generator().manual_seed(seed))
    path.write_text("".join(map(chr, letters.tolist())))
    return path


def quick_spec(checkpoint: Path, folder: Path, method: MethodParameters = QUICK, *, samples: int = 4) -> JobSpec:
    """Two of six layers, quick, without speed and generation; its texts are written to `folder`."""
    return JobSpec(
        model=ModelRef(id=str(checkpoint)),
        method=method,
        layers_to_remove=2,
        calibration=CalibrationSpec(source=str(write_text(folder / "calibration.txt", 0)), sequence_length=16),
        evaluation=EvaluationSpec(
            source=str(write_text(folder / "test.txt", 1)), samples=samples, speed=False, generation=False
        ),
    )


@pytest.fixture
def spec(tiny_checkpoint: Path, tmp_path: Path) -> JobSpec:
    return quick_spec(tiny_checkpoint, tmp_path)


def run(spec: JobSpec, folder: Path, **arguments: object) -> Report:
    return pipeline.run(
        spec, model_dir=folder / "model", report_dir=folder / "report", sources=SOURCES, device="cpu", **arguments
    )


def test_a_run_writes_a_shorter_checkpoint_and_its_report(spec: JobSpec, tmp_path: Path) -> None:
    report = run(spec, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    assert len(model.model.layers) == 4 == report.evaluation.after.layers
    assert len(report.removed_layers) == 2
    assert [layer.index for layer in report.layers if layer.removed] == list(report.removed_layers)
    assert len(report.gate_path) == 2
    assert len(report.training) == 2
    assert set(report.stage_seconds) == set(Stage)
    verify(tmp_path / "out/model")
    written = (tmp_path / "out/report/report.json").read_text()
    assert Report.model_validate_json(written) == report
    assert (tmp_path / "out/report/report.html").is_file()


def test_a_long_run_has_a_small_report(spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "MOST_POINTS", 3)
    method = ElderParameters(gate_steps=5, gate_patience=0, updates=6)
    report = run(spec.model_copy(update={"method": method}), tmp_path)
    assert [point.step for point in report.gate_path] == [1, 3, 5]
    assert [point.update for point in report.training][::2] == [1, 6]
    assert len(report.training) == 3


@pytest.mark.parametrize("length", [0, 1, 999, 1000, 1001, 54_321])
def test_points_are_thinned_to_a_thousand_with_both_ends(length: int) -> None:
    kept = reporting.thinned(range(length))
    assert len(kept) == min(length, 1000)
    assert list(kept) == sorted(set(kept))
    assert kept[:1] + kept[-1:] == tuple(range(length))[:1] + tuple(range(length))[-1:]


def test_a_prompt_without_a_token_is_refused_before_loading(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[object, object]] = []
    monkeypatch.setattr("elder_core.job.check_prompts", lambda *given: seen.append(given) or [])  # type: ignore[func-returns-value]
    stages: list[Stage] = []
    evaluation = spec.evaluation.model_copy(update={"prompts": ("ab",)})
    with pytest.raises(Cancelled):
        run(
            spec.model_copy(update={"evaluation": evaluation}),
            tmp_path,
            progress=lambda point: stages.append(point.stage),
            cancelled=lambda: Stage.LOADING in stages,
        )
    assert [prompts for prompts, _ in seen] == [("ab",)]


@pytest.mark.parametrize("where", ["nowhere", "text", "prompt"])
def test_a_token_that_the_model_has_no_embedding_of_matters_where_it_is_read(
    tiny_checkpoint: Path, tmp_path: Path, where: str
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})  # as released models' tokenizers have it
    tokenizer.save_pretrained(checkpoint)
    spec = quick_spec(checkpoint, tmp_path)
    if where == "nowhere":
        assert len(run(spec, tmp_path / "out").removed_layers) == 2
        assert pipeline.measure(spec.model, spec.evaluation, sources=SOURCES, device="cpu").layers == 6
        return
    if where == "text":
        Path(spec.calibration.source).write_text("An <image> here. " * 40)
    else:
        prompts = spec.evaluation.model_copy(update={"prompts": ("An <image>",), "generation": True})
        spec = spec.model_copy(update={"evaluation": prompts})
    with pytest.raises(InvalidCheckpoint, match=r"token 257 \('<image>'\)"):
        run(spec, tmp_path / "out")


def test_the_same_spec_gives_the_same_bytes(spec: JobSpec, tmp_path: Path) -> None:
    reports = [run(spec, tmp_path / name) for name in ("a", "b")]
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    assert reports[0].gate_path == reports[1].gate_path


def test_progress_goes_through_the_stages_in_order(spec: JobSpec, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(spec, tmp_path, progress=seen.append)
    assert list(dict.fromkeys(point.stage for point in seen)) == list(Stage)
    selecting = [point for point in seen if point.stage is Stage.SELECTING and point.step]
    assert list(dict.fromkeys((point.step, point.total) for point in selecting)) == [(1, 2), (2, 2)]
    assert {"loss", "gate_mean"} <= set(selecting[0].metrics)
    assert all(point.step <= point.total for point in seen)


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.RESOLVING])
def test_a_cancelled_run_ends_at_the_next_step(spec: JobSpec, tmp_path: Path, stage: Stage) -> None:
    seen: list[Stage] = []
    with pytest.raises(Cancelled):
        run(spec, tmp_path, progress=lambda point: seen.append(point.stage), cancelled=lambda: stage in seen)
    assert seen.count(stage) == 1
    assert not (tmp_path / "report").exists()


def test_a_cut_is_made_without_loading_and_then_measured(
    spec: JobSpec, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elder_core.execution.load", lambda _: pytest.fail("the model was loaded to be cut"))
    seen: list[Stage] = []
    wanted = spec.model_copy(update={"method": CutParameters(), "layers_to_remove": None, "layers": (4, 1)})
    report = run(wanted, tmp_path, progress=lambda point: seen.append(point.stage))
    assert report.removed_layers == (1, 4)
    assert report.model.parameters == report.evaluation.before.parameters
    assert (report.evaluation.before.layers, report.evaluation.after.layers) == (6, 4)
    assert list(dict.fromkeys(seen)) == [Stage.RESOLVING, Stage.CALIBRATING, Stage.EXPORTING, Stage.EVALUATING]
    named = spec.model_copy(update={"method": ShortGptParameters(), "layers_to_remove": None, "layers": (4, 1)})
    monkeypatch.undo()
    run(named, tmp_path / "other")
    cut, loaded = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in (".", "other"))
    assert cut == loaded


def test_a_cut_needs_layers_by_name(spec: JobSpec, tmp_path: Path) -> None:
    wanted = spec.model_copy(update={"method": CutParameters()})
    for call in (
        lambda: run(wanted, tmp_path / "out"),
        lambda: pipeline.plan(wanted, sources=SOURCES, device="cpu"),
        lambda: pipeline.cut(wanted, model_dir=tmp_path / "out", sources=SOURCES),
        lambda: pipeline.sweep(
            wanted.model_copy(update={"layers_to_remove": None}), out=tmp_path / "out", counts=(1,), sources=SOURCES
        ),
    ):
        with pytest.raises(LayersNotNamed, match=r"name them in layers, such as \[3, 7\], instead of layers_to_remove"):
            call()
    assert not (tmp_path / "out").exists()


def test_a_plan_of_a_cut_says_what_it_costs(spec: JobSpec) -> None:
    wanted = spec.model_copy(update={"method": CutParameters(), "layers_to_remove": None, "layers": (4, 1)})
    found = pipeline.plan(wanted, sources=SOURCES, device="cpu")
    assert [layer.index for layer in found.layers if layer.removed] == [1, 4]
    assert found.expected.perplexity_after is not None


def test_named_layers_skip_selection(spec: JobSpec, tmp_path: Path) -> None:
    method = ElderParameters(updates=6, gate_fraction=0.5)
    report = run(spec.model_copy(update={"layers_to_remove": None, "layers": (4, 1), "method": method}), tmp_path)
    assert report.removed_layers == (1, 4)
    assert report.gate_path == ()
    assert len(report.training) == 6, "nothing was learnt before it, so the whole budget is for training"
    assert all(layer.weight is None for layer in report.layers)
    assert [layer.new_index for layer in report.layers] == [0, None, 1, 2, None, 3]


def test_a_method_that_only_selects_leaves_the_weights_alone(
    spec: JobSpec, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    report = run(spec.model_copy(update={"method": ShortGptParameters()}), tmp_path)
    dense = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).model.layers
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "model").model.layers
    for layer in report.layers:
        if layer.new_index is not None:
            old, new = dense[layer.index].state_dict(), pruned[layer.new_index].state_dict()
            assert all(torch.equal(old[name], new[name]) for name in old)
    assert report.training == ()


def test_speed_and_generation_are_in_the_report(spec: JobSpec, tmp_path: Path) -> None:
    wanted = spec.evaluation.model_copy(update={"generation": True, "prompts": ("ab",)})
    report = run(spec.model_copy(update={"evaluation": wanted}), tmp_path)
    assert [generation.prompt for generation in report.generations] == ["ab"]


def with_shared_document(spec: JobSpec, tmp_path: Path, **changes: object) -> JobSpec:
    """Evaluation text of two documents, the second of which is the calibration text."""
    documents = [Path(source).read_text() for source in (spec.evaluation.source, spec.calibration.source)]
    path = tmp_path / "shared.jsonl"
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"source": str(path), **changes})})


def test_shared_documents_are_refused_before_loading(spec: JobSpec, tmp_path: Path) -> None:
    seen: list[Progress] = []
    with pytest.raises(TextOverlap, match=r"1 of 2 evaluation documents.*allow_overlap") as caught:
        run(with_shared_document(spec, tmp_path), tmp_path / "out", progress=seen.append)
    assert caught.value.loc == ("evaluation", "source")
    assert {point.stage for point in seen} == {Stage.RESOLVING}


def test_a_shared_line_is_left_out_of_the_evaluation(spec: JobSpec, tmp_path: Path) -> None:
    calibration = json.dumps({"text": Path(spec.calibration.source).read_text()})
    evaluation = json.dumps({"text": Path(spec.evaluation.source).read_text()})
    lines = {
        "calibration": f'{calibration}\n{{"text": "= A ="}}\n',
        "evaluation": f'{{"text": "= A ="}}\n{evaluation}\n',
    }
    changes = {}
    for name, text in lines.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(text)
        changes[name] = getattr(spec, name).model_copy(update={"source": str(path)})
    report = run(spec.model_copy(update=changes), tmp_path / "out")
    assert report.evaluation.before == run(spec, tmp_path / "without").evaluation.before
    assert report.evaluation.overlapping_documents == 0
    assert any("1 of 2 evaluation documents" in warning and "left out" in warning for warning in report.warnings)


def test_where_shared_documents_are_allowed_the_report_is_marked(spec: JobSpec, tmp_path: Path) -> None:
    report = run(with_shared_document(spec, tmp_path, allow_overlap=True), tmp_path / "out")
    assert any("1 of 2 evaluation documents" in warning for warning in report.warnings)
    assert report.evaluation.overlapping_documents == 1
    page = (tmp_path / "out/report/report.html").read_text()
    assert "Not measured on unseen text" in page
    assert "text that it never saw" not in page


def test_where_the_same_text_cut_otherwise_is_allowed_the_report_is_marked(spec: JobSpec, tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(400)]
    whole, parts = tmp_path / "whole.txt", tmp_path / "parts.jsonl"
    whole.write_text(" ".join(words))
    parts.write_text("".join(json.dumps({"text": " ".join(words[at : at + 100])}) + "\n" for at in range(0, 400, 100)))
    calibration = spec.calibration.model_copy(update={"source": str(whole)})
    evaluation = spec.evaluation.model_copy(update={"source": str(parts), "allow_overlap": True})
    report = run(spec.model_copy(update={"calibration": calibration, "evaluation": evaluation}), tmp_path / "out")
    assert (report.evaluation.overlapping_documents, report.evaluation.copied_share) == (0, 1.0)
    page = (tmp_path / "out/report/report.html").read_text()
    assert "Not measured on unseen text" in page
    assert "100.0% of the evaluation text's words" in page.replace("&#39;", "'")
    assert "text that it never saw" not in page


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"updates": 497}, r"read 994 sequences of 16 tokens.*Give 63 sequences \(1,008 tokens\).*at most updates 496"),
        ({"tokens": 15_873}, r"read 994 sequences.*at most tokens 15,872"),
        ({"updates": 2, "gate_steps": 497}, r"layer weights would read 994 sequences.*at most gate_steps 496"),
    ],
)
def test_a_text_read_more_than_16_times_is_refused_before_loading(
    spec: JobSpec, tmp_path: Path, budget: dict[str, int], message: str
) -> None:
    method = ElderParameters(**({"gate_steps": 2, "gate_batch_size": 2, "batch_size": 2} | budget))
    seen: list[Progress] = []
    with pytest.raises(CalibrationTooSmall, match=message) as caught:
        run(spec.model_copy(update={"method": method}), tmp_path / "out", progress=seen.append)
    assert caught.value.loc == ("calibration", "source")
    assert Stage.LOADING not in {point.stage for point in seen}


@pytest.mark.parametrize("limit", [{"max_perplexity_increase": 0.5}, {"min_speedup": 1.1}])
def test_a_target_in_rounds_may_read_the_text_for_all_layers_but_one(
    spec: JobSpec, tmp_path: Path, limit: dict[str, float]
) -> None:
    method = ElderParameters(tokens=0, gate_steps=200, layers_per_round=1)  # five rounds: 1,000 sequences of 58 kept
    seen: list[Progress] = []
    changes = {"method": method, "layers_to_remove": None, "target": Target(**limit)}
    with pytest.raises(CalibrationTooSmall, match=r"layer weights would read 1,000 sequences"):
        run(spec.model_copy(update=changes), tmp_path / "out", progress=seen.append)
    assert Stage.LOADING not in {point.stage for point in seen}


def test_fewer_sequences_than_asked_for_are_warned_of(spec: JobSpec, tmp_path: Path) -> None:
    many = spec.calibration.model_copy(update={"samples": 500})
    report = run(spec.model_copy(update={"calibration": many}), tmp_path)
    assert any("500 calibration sequences" in warning for warning in report.warnings)


@pytest.mark.parametrize("named", [True, False])
def test_a_share_of_the_budget_that_nothing_is_learnt_with_is_told(spec: JobSpec, tmp_path: Path, named: bool) -> None:
    spec = spec.model_copy(update={"method": QUICK.model_copy(update={"gate_fraction": 0.5})})
    if named:
        spec = spec.model_copy(update={"layers_to_remove": None, "layers": (1, 4)})
    report = run(spec, tmp_path / "out")
    assert len(report.training) == (2 if named else 1)
    told = [warning for warning in report.warnings if "had no effect: the job names its layers" in warning]
    assert ["gate_fraction" in warning for warning in told] == ([True] if named else [])


def test_a_plan_names_the_layers_and_writes_nothing(spec: JobSpec, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = pipeline.plan(spec, sources=SOURCES, device="cpu")
    assert sum(layer.removed for layer in plan.layers) == 2
    assert all(layer.weight is not None for layer in plan.layers)
    assert sorted(tmp_path.rglob("*")) == before
    removed = tuple(layer.index for layer in plan.layers if layer.removed)
    assert run(spec, tmp_path / "out").removed_layers == removed


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": {"id": "builtin:nothing-there"}}, ModelNotFound),
        ({"layers_to_remove": 6}, NoLayerLeft),
        ({"layers_to_remove": None, "layers": [6]}, LayersOutOfRange),
        ({"calibration": {"source": "nowhere.txt"}}, TextNotFound),
        ({"calibration": {"sequence_length": 65}}, SequenceTooLong),
    ],
)
def test_what_can_be_refused_is_refused_before_loading(
    spec: JobSpec, tmp_path: Path, changes: dict[str, object], error: type[ElderError]
) -> None:
    seen: list[Stage] = []
    with pytest.raises(error):
        run(JobSpec.model_validate({**json.loads(spec.model_dump_json()), **changes}), tmp_path, progress=seen.append)
    assert {point.stage for point in seen} == {Stage.RESOLVING}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("text", "error"), [(" \n", TextEmpty), ("short", TextTooShort)])
@pytest.mark.parametrize("field", ["calibration", "evaluation"])
def test_text_that_does_not_do_is_refused(
    spec: JobSpec, tmp_path: Path, field: str, text: str, error: type[ElderError]
) -> None:
    (tmp_path / "poor.txt").write_text(text)
    part = getattr(spec, field).model_copy(update={"source": str(tmp_path / "poor.txt")})
    with pytest.raises(error):
        run(spec.model_copy(update={field: part}), tmp_path)


def test_a_filled_output_folder_is_refused(spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/precious").touch()
    with pytest.raises(OutputExists):
        run(spec, tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cuda:"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(DeviceUnavailable, match=device):
        devices.choose(device)


@pytest.mark.parametrize(("device", "current"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_a_named_gpu_is_the_one_that_is_measured(
    device: str, current: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_to.append)
    assert devices.choose(device) == torch.device(device)
    assert set_to == current


@pytest.mark.parametrize(
    ("flags", "most", "expected"),
    [
        ("avx512f amx_bf16", None, True),
        ("avx512f amx_bf16", "DEFAULT", True),
        ("avx512f amx_bf16", "avx512_core_amx", True),
        ("avx512f amx_bf16", "AVX512_CORE_FP16", False),
        ("avx512f", None, False),
        ("avx512f", "AVX512_CORE_AMX", False),
    ],
)
def test_a_cpu_learns_in_bfloat16_where_it_has_amx_and_may_use_it(
    flags: str, most: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t: fpu {flags}\n")
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "cpuinfo")
    if most is None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    devices._has_amx.cache_clear()
    try:
        assert devices.computes_in_bfloat16(torch.device("cpu")) is expected
    finally:
        devices._has_amx.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_running_out_of_memory_says_what_to_lower(error: Exception) -> None:
    with pytest.raises(OutOfMemory, match=r"batch_size"), devices.out_of_memory_named():
        raise error


def test_other_faults_keep_their_name() -> None:
    with pytest.raises(RuntimeError, match="shapes"), devices.out_of_memory_named():
        raise RuntimeError("shapes do not match")


def test_a_second_run_tokenises_nothing(spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Sources(allow_paths=True, token_cache=tmp_path / "tokens")
    planned = pipeline.plan(spec, sources=sources, device="cpu")
    monkeypatch.setattr("elder_core.calibration.token_cache.token_stream", lambda *_, **__: pytest.fail("tokenised"))
    assert pipeline.plan(spec, sources=sources, device="cpu").layers == planned.layers
    with pytest.raises(pytest.fail.Exception):
        pipeline.plan(spec, sources=SOURCES, device="cpu")
