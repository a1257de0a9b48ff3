"""The table against the models that transformers builds."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from elder_core.architectures import table
from elder_core.architectures.architecture import NOT_OF_LAYERS
from elder_core.architectures.defaults import DEFAULTS
from elder_core.architectures.refused import REFUSED
from elder_core.errors import UnsupportedArchitecture
from tests.unit.elder_core.families import SMALL, TINY

FAMILIES = sorted(table.ARCHITECTURES)
SPEAKS_OF_LAYERS = re.compile(
    r"layer|block_type|_k_dense|dense_replace|sparse_step|_every_|interval|period|pattern|_idxs$"
)
OTHER_NAMES = {
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "hidden_size", "n_embd", "n_embed", "d_model"),
    *("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "n_ctx", "seq_length"),
}
OF_PREDICTORS = {"mtp_layer_types", "mtp_mlp_layer_types", "mtp_layers_block_type", "mtp_local_layer_ids"}
SPEAK_OF_NONE = {"layerdrop", *OF_PREDICTORS}  # predictors are not loaded


def classes_that_write_text() -> Iterator[type[PreTrainedModel]]:
    """All that are called so, whether or not an automatic class of transformers knows them."""
    for file in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        for name in re.findall(r"^class (\w+(?:ForCausalLM|LMHeadModel))\(", file.read_text("utf-8"), re.MULTILINE):
            if file.parent.name != "auto":
                yield getattr(importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}"), name)


def test_every_model_of_transformers_that_writes_text_is_supported_or_refused_by_name():
    """A new release may have new ones: add a row to ARCHITECTURES or MULTIMODAL, or the reason why not to REFUSED."""
    decided = {*table.ARCHITECTURES, *table.MULTIMODAL, *REFUSED}
    there = {CONFIG_MAPPING[name].model_type or name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert there - decided == set()
    seeing = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
    assert seeing - decided == set()
    called = {found.config_class.model_type for found in classes_that_write_text()}
    parts = {AutoConfig.for_model(name).get_text_config().model_type for name in seeing}
    assert (called | parts) - decided == set()
    assert decided - there - seeing - called - parts == set(), "transformers has it no longer"
    assert len(decided) == len(table.ARCHITECTURES) + len(table.MULTIMODAL) + len(REFUSED)


@pytest.mark.parametrize("family", FAMILIES)
def test_row_fits_the_model(family, make_tiny):
    row, model = table.find(family), make_tiny(family)
    stack = attrgetter(row.stack)(model)
    assert isinstance(stack, nn.ModuleList)
    assert type(model).__name__ == row.model_class
    assert len(stack) == getattr(model.config, row.count) == 6
    assert getattr(model.config, row.hidden) == 32
    assert row.positions is None or getattr(model.config, row.positions) == 64
    assert getattr(type(model.config)(), "tie_word_embeddings", False) == row.tied  # as transformers has it
    assert set(model._keep_in_fp32_modules_strict or ()) == set(row.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_field_names_are_those_of_the_json(family):
    row = table.find(family)
    written = AutoConfig.for_model(family).to_dict().keys()
    named = {row.listed or row.count, row.hidden, *row.thresholds, *(name for rule in row.rules for name in rule.names)}
    assert named - written == set()
    assert row.positions is None or row.positions in written


@pytest.mark.parametrize("family", FAMILIES)
def test_every_config_field_that_speaks_of_layers_is_dealt_with(family):
    row = table.find(family)
    written = AutoConfig.for_model(family).to_dict()
    known = {row.count, *table.PREDICTORS, *(refusal.field for refusal in row.refusals)}
    known |= {name for rule in row.all_rules for name in rule.names}
    count = row.layers(written)
    lists = {name for name, value in written.items() if isinstance(value, list) and len(value) == count}
    named = {name for name in written if SPEAKS_OF_LAYERS.search(name) and "norm" not in name}
    assert (named | lists) - known - SPEAK_OF_NONE == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_list_that_a_config_may_hold_is_dealt_with(family):
    """By a rule, or as one that never has an entry for each layer; any other is refused if it has as many."""
    row, config_class = table.find(family), type(AutoConfig.for_model(family))
    fields = {field.name: str(field.type) for field in dataclasses.fields(config_class)}
    lists = {name for name, kind in fields.items() if re.search(r"\b(list|tuple)\b", kind)}
    assert ("eos_token_id" in lists) == (family != "inkling_text"), "whose text ends with one token"
    known = {name for rule in row.all_rules for name in rule.names} | {*NOT_OF_LAYERS}
    assert lists - known == set()


def test_a_list_of_which_nothing_is_known_is_refused_if_it_has_an_entry_for_each_layer():
    row, settings = table.find("llama"), {"num_hidden_layers": 6, "eos_token_id": [1, 2, 3, 4, 5, 6], "some": [1] * 5}
    table.check_settings(row, settings)
    with pytest.raises(UnsupportedArchitecture, match="pattern in its config has as many entries as there are layers"):
        table.check_settings(row, settings | {"pattern": [0, 1] * 3})


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_config_class(family):
    row, settings = table.find(family), AutoConfig.for_model(family).to_dict()
    names = (row.count, row.hidden, row.positions)
    settings[row.count] = row.layers(settings)
    assert DEFAULTS[family] == tuple(None if name is None else settings[name] for name in names)
    assert all(row.completed({})[name] == settings[name] for name in names if name)


@pytest.mark.parametrize("family", FAMILIES)
def test_aliases_are_the_names_that_transformers_reads(family):
    row = table.find(family)
    for alias in sorted(OTHER_NAMES - {row.count, row.hidden, row.positions}):
        try:
            loaded = AutoConfig.for_model(family, **{alias: 128}).to_dict()
        except (ValueError, TypeError, StrictDataclassError):
            continue  # it contradicts other settings
        named = [name for name in (row.count, row.hidden, row.positions) if name and loaded.get(name) == 128]
        assert [name for name in named if row.completed({})[name] != 128] == [
            name for known, name in row.aliases if known == alias
        ]


@pytest.mark.parametrize(
    "old",
    [
        {"hybrid_override_pattern": "M-*EM"},
        {"hybrid_override_pattern": "MM", "layers_block_type": ["mamba", "moe", "attention"]},
        {"layer_types": ["mamba", "mlp", "attention"]},
    ],
)
def test_layers_of_old_files_are_those_that_transformers_reads(old):
    """As Nemotron-H's first ones have them: a letter for each layer, and another name for some kinds."""
    row, loaded = table.find("nemotron_h"), AutoConfig.for_model("nemotron_h", **old, num_hidden_layers=9)
    found = row.completed({**old, "num_hidden_layers": 9})
    assert found["layers_block_type"] == loaded.layers_block_type
    assert found["num_hidden_layers"] == loaded.num_hidden_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_that_transformers_does_not_load_are_not_saved(family):
    row = table.find(family)
    ignored = getattr(transformers, row.model_class)._keys_to_ignore_on_load_unexpected or []
    appended = re.compile(r"model\\\.layers\\\.\d+")
    buffers = {"inv_freq", "attn.bias", "crossattention.bias", "attention.bias", "attention.masked_bias"}
    assert {key for key in ignored if not appended.match(key)} - buffers <= {*row.not_loaded}


def test_tiny_models_say_nothing_of_families_and_settings_that_are_not_there():
    families = {*table.ARCHITECTURES, *table.TEXT_PARTS}
    assert {*TINY} - families == set()
    configs = [AutoConfig.for_model(family) for family in families]
    assert {*SMALL} - {name for config in configs for name in (*config.to_dict(), *config.attribute_map)} == set()


def test_unknown_family_is_answered_with_the_known_ones():
    with pytest.raises(UnsupportedArchitecture, match=r"'mixtrall' is not supported; .*Nearest: mixtral"):
        table.find("mixtrall")


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("diffllama", "computed from its index"),
        ("qwen3_vl_text", "give the whole model"),
        ("mllama_text_model", "skipped where there is none"),
    ],
)
def test_a_family_refused_by_name_is_answered_with_the_reason(family, reason):
    with pytest.raises(UnsupportedArchitecture, match=f"'{family}' cannot be pruned: .*{reason}"):
        table.find(family)


@pytest.mark.parametrize(
    ("family", "field"),
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx"),
        ("gpt2", "add_cross_attention"),
        ("llama", "is_encoder_decoder"),
        ("qwen3", "per_layer_config"),
    ],
)
def test_settings_that_removal_would_break_are_refused(family, field):
    row = table.find(family)
    table.check_settings(row, {field: False})
    table.check_settings(row, {field: {}})
    with pytest.raises(UnsupportedArchitecture, match=field) as caught:
        table.check_settings(row, {field: {"0": {}}})
    assert caught.value.loc == ("model", "id")


def test_table_and_inspection_import_neither_torch_nor_transformers():
    code = (
        "import sys, elder_core.inspection, elder_core.manifest; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'safetensors', 'huggingface_hub')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
