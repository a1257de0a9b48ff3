"""`python -m elder_core` as its user sees it."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from elder_core import console, pipeline
from elder_core.__main__ import app
from elder_core.errors import Cancelled
from elder_core.manifest import read_manifest, verify
from elder_core.spec import JobSpec, Measurement, Report

QUICK = ("gate_steps=2", "gate_batch_size=2", "updates=2", "batch_size=2", "calibration.sequence_length=16")
LIGHT = ("evaluation.speed=false", "evaluation.generation=false", "evaluation.samples=4")


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    """Options that name two different texts."""
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    (tmp_path / "b.txt").write_text("pack my box with five dozen liquor jugs! " * 20)
    return {"--calibration": str(tmp_path / "a.txt"), "--evaluation": str(tmp_path / "b.txt")}


def invoke(command: str, *options: str, settings: tuple[str, ...] = (), **named: str) -> Result:
    pairs = [part for name, value in named.items() for part in (name, value)]
    return CliRunner().invoke(app, [command, *options, *pairs, *(f"--set={setting}" for setting in settings)])


def test_prune_writes_the_checkpoint_with_its_report(
    tiny_checkpoint: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["--model", str(tiny_checkpoint), "--ratio", "0.34", "--out", str(out), "--seed", "3"]
    result = invoke("prune", *arguments, settings=QUICK + LIGHT, **texts)
    assert result.exit_code == 0, result.output
    report = Report.model_validate_json((out / "report.json").read_text())
    assert report.spec.seed == 3
    assert report.spec.method.name == "elder"
    assert report.evaluation.sequences == 4
    assert {"config.json", "model.safetensors", "elder.json", "report.html"} <= {file.name for file in out.iterdir()}
    assert "perplexity" in result.stdout


def test_prune_goes_on_from_its_journal(tiny_checkpoint: Path, texts: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--model", str(tiny_checkpoint), "--ratio", "0.34", "--journal", str(tmp_path / "journal")]
    resumptions = []
    for out in (tmp_path / "first", tmp_path / "second"):
        result = invoke("prune", *arguments, "--out", str(out), settings=QUICK + LIGHT, **texts)
        assert result.exit_code == 0, result.output
        resumptions.append(Report.model_validate_json((out / "report.json").read_text()).resumptions)
    assert resumptions == [0, 1]


def test_cut_writes_the_checkpoint_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--model", str(tiny_checkpoint), "--layers", "4,1", "--out", str(out))
    result = invoke("cut", *options, settings=("output.dtype=float32",))
    assert result.exit_code == 0, result.output
    assert "removed 1, 4; 4 of 6 layers stay" in result.stdout
    manifest = read_manifest(out)
    assert (manifest.removed_layers, manifest.spec.method.name) == ((1, 4), "cut")
    assert manifest.layer_map == {0: 0, 2: 1, 3: 2, 5: 3}
    assert manifest.source.parameters == sum(
        tensor.numel() for tensor in load_file(tensors_of(tiny_checkpoint)).values()
    )
    verify(out)
    assert {tensor.dtype for tensor in load_file(tensors_of(out)).values()} == {torch.float32}
    card = (out / "README.md").read_text()
    assert "- All weights that stay are those of the source, as float32." in card
    assert "Calibration text" not in card
    again = invoke("cut", *options)
    assert (again.exit_code, again.stderr.startswith("error [output_exists]")) == (2, True)


@pytest.mark.parametrize("place", ["file/out", "file/out/deeper", "/proc/nope", "x" * 300])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_done(
    tiny_checkpoint: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    result = invoke("prune", "--model", str(tiny_checkpoint), "--layers", "1", "--out", str(tmp_path / place))
    assert result.exit_code == 2
    told = result.stderr.splitlines()[-1]
    assert told.startswith(f"error [output_not_writable]: {tmp_path / place} cannot be written, nor a folder beside it")
    assert "give another folder" in told


@pytest.mark.parametrize(
    ("command", "setting", "told"),
    [
        ("cut", "evaluation.samples=3", "cutting takes only output"),
        ("prune", "name=elder", "--method names the method"),
        ("prune", "updates=-1", "updates: Input should be greater than or equal to 0; found -1."),
        ("prune", "foo=1", "foo: There is no such field; correct its name or leave it out."),
    ],
)
def test_settings_that_do_not_do_are_refused(tmp_path: Path, command: str, setting: str, told: str) -> None:
    options = ("--model", "builtin:manuals-16l", "--layers", "1", "--out", str(tmp_path / "out"))
    result = invoke(command, *options, settings=(setting,))
    assert result.exit_code == 2
    assert told in " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())


def tensors_of(folder: Path) -> Path:
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("1,99", "error [layers_out_of_range]: Layer 99 does not exist"),
        ("1,1", "error [duplicate_layers]"),
        ("0,1,2,3,4,5", "error [no_layer_left]"),
        ("1,x", "no list of layer numbers"),
    ],
)
def test_a_cut_that_cannot_be_made(tiny_checkpoint: Path, tmp_path: Path, layers: str, expected: str) -> None:
    result = invoke("cut", "--model", str(tiny_checkpoint), "--layers", layers, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert expected in " ".join(result.stderr.replace("│", "").split())
    assert list(tmp_path.iterdir()) == []


def test_plan_shows_every_layer_and_writes_nothing(
    tiny_checkpoint: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = ["--model", str(tiny_checkpoint), "--layers-to-remove", "2", "--method", "shortgpt"]
    result = invoke("plan", *arguments, settings=("calibration.sequence_length=16",), **texts)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("removed") == 2
    assert "bytes on disk" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [("max-perplexity-increase", "0.1", 0.1), ("max-bytes", "9000", 9000), ("min-speedup", "1.3", 1.3)],
)
@pytest.mark.parametrize("command", ["plan", "prune"])
def test_a_target_is_an_option(
    texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, command: str, option: str, value: str, expected: float
) -> None:
    seen: list[JobSpec] = []

    def caught(spec: JobSpec, **_: object) -> None:
        seen.append(spec)
        raise Cancelled

    monkeypatch.setattr(pipeline, "run" if command == "prune" else "plan", caught)
    out = ("--out", "unused") if command == "prune" else ()
    invoke(command, "--model", "m", f"--{option}", value, *out, **texts)
    assert seen[0].target is not None
    assert seen[0].target.model_dump(exclude_none=True) == {option.replace("-", "_"): expected}


def test_evaluate_prints_json(tiny_checkpoint: Path, texts: dict[str, str]) -> None:
    options = ("--model", str(tiny_checkpoint), "--data", texts["--evaluation"], "--no-speed", "--json")
    result = invoke("evaluate", *options, "--samples", "2")
    assert result.exit_code == 0, result.output
    measured = Measurement.model_validate_json(result.stdout)
    assert measured.layers == 6
    assert measured.decode_tokens_per_second is None


@pytest.mark.parametrize(("option", "name"), [("--data", "source"), ("--model", "id")])
def test_evaluate_names_an_option_that_does_not_do(tiny_checkpoint: Path, option: str, name: str) -> None:
    result = invoke("evaluate", "--model", str(tiny_checkpoint), option, "")
    assert result.exit_code == 2
    assert f"{name}: String should have at least 1 character" in result.stderr


def test_evaluate_prints_a_table(tiny_checkpoint: Path, texts: dict[str, str]) -> None:
    result = invoke("evaluate", "--model", str(tiny_checkpoint), "--data", texts["--evaluation"], "--no-speed")
    assert "bits per byte" in result.stdout


def test_an_error_is_one_line_with_its_code(texts: dict[str, str], tmp_path: Path) -> None:
    result = invoke("prune", "--model", "builtin:nothing", "--ratio", "0.5", "--out", str(tmp_path / "out"), **texts)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].startswith("error [model_not_found]: There is no model 'builtin:nothing'")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--ratio", "1.5"), "error [invalid_ratio]"),
        ((), "error [ambiguous_target]"),
        (("--ratio", "0.5", "--layers", "1"), "error [ambiguous_target]"),
        (("--ratio", "0.5", "--max-bytes", "1"), "error [ambiguous_target]"),
        (("--min-speedup", "1.5", "--max-bytes", "1"), "error [ambiguous_target]"),
        (("--max-bytes", "1"), "error [target_unreachable]"),
        (("--max-bytes", "1000000000"), "error [target_already_met]"),
        (("--min-speedup", "1"), "target.min_speedup"),
        (("--layers", "1,99"), "error [layers_out_of_range]"),
        (("--ratio", "0.5", "--method", "cut"), "error [layers_not_named]"),
        (("--layers", "1", "--method", "cut", "--set", "tokens=1"), "method.tokens"),
        (("--layers", "1,x"), "no list of layer numbers"),
        (("--ratio", "0.5", "--method", "elderr"), "Did you mean 'elder'?"),
        (("--ratio", "0.5", "--set", "gate_steps"), "give KEY=VALUE"),
        (("--ratio", "0.5", "--set", "model.id=x"), "give KEY=VALUE"),
        (("--ratio", "0.5", "--set", "gate_steps=0"), "method.gate_steps"),
        (("--ratio", "0.5", "--set", "nonsense=1"), "method.nonsense"),
        (("--ratio", "0.5", "--device", "tpu"), "error [device_unavailable]"),
    ],
)
def test_bad_usage_exits_2_and_says_what(
    tiny_checkpoint: Path, texts: dict[str, str], options: tuple[str, ...], expected: str
) -> None:
    result = invoke("plan", "--model", str(tiny_checkpoint), *options, **texts)
    assert result.exit_code == 2
    assert expected in " ".join(result.stderr.replace("│", "").split())


def test_a_cancelled_run_exits_130(
    tiny_checkpoint: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(spec: JobSpec, *, cancelled: object, **_: object) -> None:
        assert callable(cancelled)
        assert not cancelled()
        os.kill(os.getpid(), signal.SIGINT)
        assert cancelled()
        raise Cancelled

    monkeypatch.setattr(pipeline, "plan", interrupted)
    result = invoke("plan", "--model", str(tiny_checkpoint), "--ratio", "0.5", **texts)
    assert result.exit_code == 130


def test_a_second_interrupt_ends_at_once_and_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), console.interruptible():  # noqa: PT012  # both signals belong together
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_settings_reach_their_section(
    tiny_checkpoint: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[JobSpec] = []

    def caught(spec: JobSpec, **_: object) -> None:
        seen.append(spec)
        raise Cancelled

    monkeypatch.setattr(pipeline, "plan", caught)
    settings = (
        "gate=output",
        "layers_per_round=1",
        "calibration.seed=7",
        "output.dtype=float16",
        "evaluation.samples=null",
    )
    invoke("plan", "--model", str(tiny_checkpoint), "--layers", "3,1", settings=settings, **texts)
    dumped = json.loads(seen[0].model_dump_json())
    assert dumped["layers"] == [3, 1]
    assert dumped["method"]["gate"] == "output"
    assert dumped["method"]["layers_per_round"] == 1
    assert dumped["calibration"]["seed"] == 7
    assert dumped["output"]["dtype"] == "float16"
    assert dumped["evaluation"]["samples"] is None
