"""Models that see as well: layers go from the text part, and what is left sees as before."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedTokenizerFast

from elder_core import pipeline
from elder_core.architectures import table
from elder_core.architectures.defaults import DEFAULTS
from elder_core.checkpoints import Resolved
from elder_core.errors import ConfigMismatch, QuantizedCheckpoint, UnsupportedArchitecture
from elder_core.inspection import Sources, inspect_checkpoint, inspect_config
from elder_core.methods.replaceme import ReplaceMe
from elder_core.parameters import ElderParameters, ReplaceMeParameters
from elder_core.sizes import saved_sizes
from elder_core.spec import CalibrationSpec, EvaluationSpec, JobSpec, ModelRef, OutputSpec
from elder_core.surgery import decoder_layers, row_of
from elder_core.weight_files import SINGLE_FILE, checkpoint_bytes
from tests.unit.elder_core.acceptance import PROMPT, SAME, distance, logits
from tests.unit.elder_core.conftest import LAYERS
from tests.unit.elder_core.fresh_process import fresh_process
from tests.unit.elder_core.multimodal import (
    SIGHTS,
    build_multimodal,
    each_seeing,
    multimodal_config,
    with_image,
)
from tests.unit.elder_core.test_cutting import cut, files, loaded_and_saved, raw, resolved, source_of
from tests.unit.elder_core.test_methods import context_of
from tests.unit.elder_core.test_pipeline import write_text

NAMED_AS_PUBLISHED = ("deepseek_ocr2",)  # by transformers, whatever names it has read
SETS = ((0, 5), (1, 3, 5))  # which all families have words for


def names(folder: Path, source: Resolved) -> set[str]:
    """Of the tensors in `folder`, `{}` for the number of a layer: layers of several kinds hold different ones."""
    return {source.info.row.place(name)[0] for name in raw(folder)}


def test_every_family_and_what_is_said_of_it_is_tried() -> None:
    assert set(SIGHTS) == set(table.MULTIMODAL)
    for family, row in table.MULTIMODAL.items():
        assert len(set(row.texts)) == len(row.texts)
        assert AutoConfig.for_model(family).get_text_config().model_type in (row.texts[0], *dict(row.refused))


@pytest.mark.parametrize(("family", "text"), each_seeing())
def test_row_fits_the_model(family: str, text: str) -> None:
    model = build_multimodal(family, text)
    row, part = row_of(model), model.config.get_text_config()
    assert type(model).__name__ == row.model_class
    assert row.text_type == part.model_type == text
    assert len(decoder_layers(model)) == getattr(part, row.count) == LAYERS
    assert getattr(AutoConfig.for_model(family), "tie_word_embeddings", False) == row.tied  # as transformers has it
    assert set(model._keep_in_fp32_modules_strict or ()) == set(row.float32)
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    assert {key for key in ignored if not re.search(r"layers\\\.\d+", key)} <= {*row.not_loaded}
    default = AutoConfig.for_model(text).to_dict()
    default[row.count] = row.layers(default)
    assert DEFAULTS[text] == tuple(name and default[name] for name in (row.count, row.hidden, row.positions))


@pytest.mark.parametrize(("family", "text"), each_seeing())
def test_a_text_alone_is_read_forwards(family: str, text: str) -> None:
    """Calibration and evaluation are by text alone; a model that looks ahead there would be judged by nothing."""
    model = build_multimodal(family, text)
    found, before = logits(model), logits(model, input_ids=PROMPT[:, :-1])
    assert distance(found[:, :-1], before) < SAME


@pytest.mark.parametrize("of_text", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("of_whole", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize(("family", "text"), each_seeing())
def test_embeddings_are_tied_where_transformers_ties_them(
    family: str, text: str, of_whole: dict[str, Any], of_text: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(family, **of_whole, text_config={"model_type": text, **of_text})
    assert table.find(family, text).ties(of_whole, of_text) == getattr(config, "tie_word_embeddings", False)


@pytest.mark.parametrize("removed", SETS)
@pytest.mark.parametrize(("family", "text"), each_seeing())
def test_files_are_cut_as_models_are_and_what_sees_is_left_alone(
    family: str, text: str, removed: tuple[int, ...], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = source_of(tmp_path / "source", build_multimodal(family, text), tiny_tokenizer)
    (source.path / "preprocessor_config.json").write_text("{}")
    saved = loaded_and_saved(source, tmp_path / "saved", removed)
    assert files(cut(source, tmp_path / "cut", removed)) == files(saved)
    assert (saved / "preprocessor_config.json").is_file()
    assert saved_sizes(source.info, OutputSpec()).without(removed) == checkpoint_bytes(saved)
    towers = {name: tensor for name, tensor in raw(source.path).items() if source.info.row.place(name)[1] is None}
    assert any(re.search("vis|vit|tower|sam_model", name) for name in towers)
    assert towers.items() <= raw(saved).items()


@pytest.mark.parametrize(("family", "text"), each_seeing())
def test_names_in_files_stay_as_they_are(
    family: str, text: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Files of this and of earlier years name the same tensors differently."""
    model = build_multimodal(family, text)
    model.save_pretrained(tmp_path / "source", save_original_format=False)
    tiny_tokenizer.save_pretrained(tmp_path / "source")
    source = resolved(tmp_path / "source")
    found, saved = cut(source, tmp_path / "cut", (0, 5)), loaded_and_saved(source, tmp_path / "saved", (0, 5))
    if family in NAMED_AS_PUBLISHED:
        assert Counter(raw(found).values()) == Counter(raw(saved).values())
    else:
        assert files(found) == files(saved)
    assert names(found, source) <= names(source.path, source)


def test_names_of_published_files_stay_as_they_are(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """HyperCLOVA X's, which transformers gives only to models that it has read from such files."""
    source = source_of(tmp_path / "source", build_multimodal("hyperclovax_vision_v2"), tiny_tokenizer)
    here, there = "model.language_model.", "model.language_model.model."
    held = {name.replace(here, there): tensor for name, tensor in load_file(source.path / SINGLE_FILE).items()}
    save_file(held, source.path / SINGLE_FILE, metadata={"format": "pt"})
    source = resolved(source.path)
    assert files(cut(source, tmp_path / "cut", (0, 5))) == files(loaded_and_saved(source, tmp_path / "saved", (0, 5)))
    assert names(tmp_path / "cut", source) <= names(source.path, source)


@pytest.mark.parametrize("family", ["gemma3", "llava", "qwen2_vl"])
def test_a_job_from_text_to_report(family: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    source_of(tmp_path / "source", build_multimodal(family), tiny_tokenizer)
    spec = JobSpec(
        model=ModelRef(id=str(tmp_path / "source")),
        method=ElderParameters(gate_steps=2, gate_batch_size=2, updates=2, batch_size=2, search_samples=2),
        layers_to_remove=2,
        calibration=CalibrationSpec(source=str(write_text(tmp_path / "calibration.txt", 0)), sequence_length=16),
        evaluation=EvaluationSpec(source=str(write_text(tmp_path / "test.txt", 1)), samples=2, speed=False),
    )
    report = pipeline.run(
        spec, model_dir=tmp_path / "out", report_dir=tmp_path, sources=Sources(allow_paths=True), device="cpu"
    )
    assert (report.model.architecture, report.evaluation.after.layers) == (
        row_of(build_multimodal(family)).model_class,
        4,
    )
    with fresh_process() as fresh:
        found = fresh.load(tmp_path / "out", with_image(family))
    assert found.complaints == []
    assert found.logits[0].isfinite().all()
    assert "pipeline_tag: image-text-to-text" in (tmp_path / "out" / "README.md").read_text()


def test_a_config_that_leaves_out_what_is_usual(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """As those on the hub: Qwen2-VL's in one part, Gemma 3's without the number of positions."""
    settings = json.loads(json.dumps(multimodal_config("qwen2_vl").to_dict()))
    flat = {**settings.pop("text_config"), **settings, "model_type": "qwen2_vl"}
    assert inspect_config({**flat, "architectures": None}).layers == LAYERS
    source = source_of(tmp_path / "gemma", build_multimodal("gemma3"), tiny_tokenizer)
    path = source.path / "config.json"
    config = json.loads(path.read_text())
    del config["text_config"]["max_position_embeddings"], config["text_config"]["model_type"]
    path.write_text(json.dumps(config))
    assert inspect_checkpoint(source.path).max_positions == 131_072
    config["text_config"]["num_hidden_layers"] = 5
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigMismatch, match="5 layers"):
        inspect_checkpoint(source.path)


def test_a_text_part_by_the_name_that_released_files_give_it(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Nemotron's with eyes: its layers are a word there, in a config of another name."""
    source = source_of(tmp_path / "source", build_multimodal("nemotron_h_omni"), tiny_tokenizer)
    path = source.path / "config.json"
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    kinds = text.pop("layers_block_type")
    word = "".join({"linear_attention": "M", "moe": "E", "full_attention": "*", "mlp": "-"}[kind] for kind in kinds)
    path.write_text(json.dumps({**config, "llm_config": {**text, "hybrid_override_pattern": word}}))
    assert inspect_checkpoint(source.path).layers == LAYERS
    with pytest.raises(QuantizedCheckpoint):
        inspect_config({**config, "llm_config": {**text, "quantization_config": {"quant_method": "fp8"}}})
    cut(resolved(source.path), tmp_path / "cut", (0, 5))
    written = json.loads((tmp_path / "cut" / "config.json").read_text())["text_config"]
    assert (written["layers_block_type"], written["num_hidden_layers"]) == (kinds[1:5], 4)
    assert written["hybrid_override_pattern"] == word[1:5]
    assert inspect_checkpoint(tmp_path / "cut").layers == 4


def test_a_text_part_that_has_no_row_there_is_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"text part of this llava model is .*'mamba'"):
        inspect_config({"model_type": "llava", "text_config": {"model_type": "mamba"}})


def test_a_text_part_that_cannot_be_pruned_is_refused_with_the_reason() -> None:
    with pytest.raises(
        UnsupportedArchitecture, match=r"'paligemma' around one of 'gemma' .*: it reads a text alone in"
    ):
        inspect_config({"model_type": "paligemma", "text_config": {"model_type": "gemma"}})


def test_a_head_stored_beside_the_embeddings_goes_if_it_is_the_same(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """LLaVA's files call the head language_model.lm_head; beside embeddings that are the same it goes."""
    source = source_of(tmp_path / "source", build_multimodal("llava"), tiny_tokenizer)
    path = source.path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    held = load_file(source.path / "model.safetensors")
    held["language_model.lm_head.weight"] = held["language_model.model.embed_tokens.weight"].clone()
    save_file(held, source.path / "model.safetensors", metadata={"format": "pt"})
    source = resolved(source.path)
    found: Any = files(cut(source, tmp_path / "cut"))
    assert found == files(loaded_and_saved(source, tmp_path / "saved"))
    assert "language_model.lm_head.weight" not in raw(tmp_path / "cut")


def test_methods_that_make_up_for_layers_can_do_so() -> None:
    context = context_of(build_multimodal("llava"))
    ReplaceMe(ReplaceMeParameters()).compensate(context, ReplaceMe(ReplaceMeParameters()).select(context, 2).removed)
