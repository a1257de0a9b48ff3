"""Models whose layers remember by a state go the whole way, measured and generating too."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from elder_core import pipeline
from elder_core.evaluation import speed
from elder_core.inspection import Sources
from elder_core.parameters import ShortGptParameters
from elder_core.spec import CalibrationSpec, EvaluationSpec, JobSpec, ModelRef
from tests.unit.elder_core.conftest import MakeTiny
from tests.unit.elder_core.families import each
from tests.unit.elder_core.test_pipeline import write_text

RECURRENT = (
    *("bamba", "falcon_h1", "falcon_mamba", "jamba", "kimi_linear", "lfm2", "mamba", "mamba2"),
    *("olmo_hybrid", "qwen3_next", "recurrent_gemma"),
)


@pytest.mark.parametrize("family", each(RECURRENT))
def test_speed_memory_and_generation_are_measured(
    make_tiny: MakeTiny,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    monkeypatch.setattr(speed, "FEWEST_ROUNDS", 1)
    monkeypatch.setattr(speed, "MOST_ROUNDS", 1)
    make_tiny(family).save_pretrained(tmp_path / "source")
    tiny_tokenizer.save_pretrained(tmp_path / "source")
    spec = JobSpec(
        model=ModelRef(id=str(tmp_path / "source")),
        method=ShortGptParameters(),
        layers_to_remove=2,
        calibration=CalibrationSpec(source=str(write_text(tmp_path / "calibration.txt", 0)), sequence_length=16),
        evaluation=EvaluationSpec(source=str(write_text(tmp_path / "test.txt", 1, length=5_000)), samples=2),
    )
    report = pipeline.run(
        spec, model_dir=tmp_path / "out", report_dir=tmp_path, sources=Sources(allow_paths=True), device="cpu"
    )
    before, after = report.evaluation.before, report.evaluation.after
    assert (before.layers, after.layers) == (6, 4)
    for measured in (before, after):
        assert measured.decode_tokens_per_second is not None
        assert measured.peak_memory_bytes is not None
    assert report.evaluation.ideal is not None
    assert report.evaluation.ideal.decode_speedup > 1
    assert all(generation.after for generation in report.generations)
    assert report.generations
