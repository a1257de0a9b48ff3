"""The benchmark of quality, on a tiny model: that its rows may be compared, and that a run goes on where it ended."""

from __future__ import annotations

import importlib.util
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from elder_core.parameters import ElderParameters

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def quality() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_quality", ROOT / "benchmarks" / "quality.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_quality"] = module
    spec.loader.exec_module(module)
    return module


def test_attention_is_counted_whatever_computes_it(quality: Any, tiny_llama: PreTrainedModel) -> None:
    ids = torch.randint(1, 257, (2, 64))
    found = []
    for implementation in ("sdpa", "eager"):
        tiny_llama.set_attn_implementation(implementation)
        with quality.counted() as forward:
            loss = tiny_llama(input_ids=ids, use_cache=False).logits.sum()
        with quality.counted() as backward:
            loss.backward()
        found.append((forward.flops, backward.flops))
    (fused, fused_backward), (plain, plain_backward) = found
    assert fused == plain
    assert plain_backward < fused_backward < 1.25 * plain_backward, "the fused one computes the scores again"


def test_sequences_are_counted_once_however_often_they_are_read(quality: Any, tiny_llama: PreTrainedModel) -> None:
    ids = torch.arange(1, 61).reshape(6, 10)
    with quality.sequences_read(tiny_llama) as read:
        for batch in (ids[:4], ids[2:], ids):
            tiny_llama(input_ids=batch, use_cache=False)
    tiny_llama(input_ids=ids + 60, use_cache=False)
    assert len(read) == 6


def test_what_a_row_left_to_the_method_counts_as_what_it_then_was(quality: Any) -> None:
    searched, trained = ElderParameters(tokens=0, search_samples=16), ElderParameters()
    for parameters, steps in ((searched, 16), (trained, 96)):
        written = parameters.model_dump(mode="json")
        assert quality._same(written, parameters, set())
        for given in (16, 96):
            assert quality._same(written | {"gate_steps": given}, parameters, set()) == (given == steps)


@pytest.mark.parametrize(
    ("name", "version", "kept"),
    [
        ("ablation: training by cross-entropy", "0.3.7", False),
        ("ablation: training by cross-entropy", "0.3.8", True),
        ("elder's layers + fine-tune", None, False),
        ("elder's layers + fine-tune", "0.3.6", False),
        ("elder's layers + fine-tune", "0.3.7", True),
        ("elder's layers + distil", None, True),
        ("paper (residual gate)", None, True),  # its layers are there while it trains
        ("paper (residual gate) without stage 2", None, True),
    ],
)
def test_rows_trained_at_another_default_rate_are_told_by_their_version(
    quality: Any, name: str, version: str | None, kept: bool
) -> None:
    recipe = next(recipe for recipe in quality.recipes() if recipe.name == name)
    made = dict.fromkeys(quality.Row.model_fields) | {
        "made_at": datetime.now(UTC),
        "version": version,
        "parameters": quality._recorded(recipe),
    }
    assert quality.made_by(quality.Row.model_construct(**made), recipe) is kept


@pytest.mark.parametrize("name", ["revision", "text_sha256", "calibration_sha256", "windows"])
def test_a_file_of_something_else_is_not_gone_on_with(quality: Any, name: str) -> None:
    told: dict[str, Any] = {"revision": "a", "text_sha256": "b", "calibration_sha256": "c", "windows": 8, "rows": []}
    here = quality.Result.model_construct(**told)
    for same in (told, told | {"calibration_sha256": None}):  # as in files of before it was told
        assert quality._kept(quality.Result.model_construct(**same), here, [], "a machine, float32") == []
    other = quality.Result.model_construct(**told | {name: 9 if name == "windows" else "other"})
    with pytest.raises(SystemExit, match=f"has another {name}; give another --output"):
        quality._kept(other, here, [], "a machine, float32")


@pytest.mark.timeout(900)  # two minutes where nothing else runs
def test_rows_spend_what_elder_spends_and_are_not_made_twice(
    quality: Any, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.jsonl"
    lines = (json.dumps({"text": f"{number} times {number} is {number * number}. " * 20}) for number in range(200))
    text.write_text("\n".join(lines), encoding="utf-8")
    output = tmp_path / "quality-tiny.json"
    monkeypatch.setattr(quality.ElderParameters, "default_tokens", 4_000)
    rows = [
        "elder",
        "elder untrained",
        "elder's layers untrained",
        "elder's layers + distil",
        "elder's layers + fine-tune",
        "sleb untrained",
        "sleb + distil",
        "shortgpt + distil",
        "uidl + distil",
        "ablation: hidden states not matched",
    ]

    def run() -> dict[str, Any]:
        given = ["--model", str(tiny_checkpoint), "--calibration", str(text), "--text", str(text)]
        more = ["--windows", "8", "--ratios", "0.5", "--seeds", "0", "--rows", ",".join(rows), "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["quality.py", *given, *more, "--device", "cpu"])
        assert quality.main() == 0
        found = json.loads(output.read_text(encoding="utf-8"))
        return {row["name"]: row for row in found["rows"]}

    made = run()
    assert set(made) == set(rows)
    spent = {name: row["selection_flops"] + row["training_flops"] for name, row in made.items() if row["updates"]}
    for name, row in made.items():
        if row["updates"] and name != "elder":
            one = row["training_flops"] / row["updates"]
            assert 0 <= spent["elder"] - spent[name] < 1.01 * one, name
    assert made["sleb untrained"]["updates"] == made["sleb untrained"]["training_flops"] == 0
    assert made["sleb + distil"]["selection_flops"] > made["shortgpt + distil"]["selection_flops"]
    assert made["sleb + distil"]["updates"] < made["shortgpt + distil"]["updates"]
    assert all(row["selection_tokens"] > 0 for row in made.values())

    again = run()
    assert {name: row["made_at"] for name, row in again.items()} == {name: row["made_at"] for name, row in made.items()}

    stored = json.loads(output.read_text(encoding="utf-8"))
    for row in stored["rows"]:
        if row["name"] == "sleb + distil":
            row["training_flops"] //= 2  # as if ELDeR's budget had been smaller then
        if row["name"] == "shortgpt + distil":
            row["parameters"]["chooser"]["scoring_samples"] += 1
        if row["name"] == "elder":
            del row["parameters"]["chooser"]["gate_fraction"]  # as before there was such a setting
        if row["name"].startswith("elder"):
            row["parameters"]["chooser"]["search_width"] += 1  # without effect where something is trained
        if row["name"] in {"elder's layers + distil", "ablation: hidden states not matched"}:
            row["parameters"]["chooser"]["matching"] += 1  # without effect where another training follows
            row["parameters"]["chooser"] |= {"gate_patience": 8, "gate_steps": 96}  # what null stands for there
        if row["name"] == "elder's layers untrained":
            row["parameters"]["chooser"]["gate_patience"] = 9
        if row["name"] == "uidl + distil":
            row["parameters"]["then"]["learning_rate"] = 1e-5
    output.write_text(json.dumps(stored), encoding="utf-8")
    every, rows = rows, ["elder"]
    assert {name: row["made_at"] for name, row in run().items()} == {name: row["made_at"] for name, row in made.items()}

    rows = every
    monkeypatch.setattr(quality, "SLOWER_TEXT", "999.0.0")
    renewed = {name for name, row in run().items() if row["made_at"] != made[name]["made_at"]}
    assert renewed == {
        "elder untrained",  # by its search_width
        "elder's layers untrained",
        "elder's layers + fine-tune",  # by its version
        "sleb + distil",
        "shortgpt + distil",
        "uidl + distil",
        "ablation: hidden states not matched",
    }

    monkeypatch.setattr(quality, "_machine", lambda _: "a machine, 1 threads, float16")
    with pytest.raises(SystemExit, match="and here is a machine, 1 threads, float16; give another --output"):
        run()
