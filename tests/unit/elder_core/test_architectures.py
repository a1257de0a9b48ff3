"""The table against the models that transformers builds."""

from __future__ import annotations

import re
import subprocess
import sys
from operator import attrgetter

import pytest
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from elder_core.architectures import table
from elder_core.errors import UnsupportedArchitecture

FAMILIES = sorted(table.ARCHITECTURES)
SPEAKS_OF_LAYERS = re.compile(
    r"layer|block_type|_k_dense|dense_replace|sparse_step|_every_|interval|period|pattern|_idxs$"
)
SPEAK_OF_NONE = {"layerdrop", "mtp_layer_types", "mtp_mlp_layer_types"}  # the last two of layers that are not loaded


def test_every_causal_language_model_of_transformers_is_supported_or_refused_by_name():
    """A new release may have new ones: add a row to ARCHITECTURES, or the reason why not to REFUSED."""
    decided = {*table.ARCHITECTURES, *table.REFUSED}
    there = {CONFIG_MAPPING[name].model_type or name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert there - decided == set()
    assert decided - there == set(), "transformers has it no longer"
    assert table.ARCHITECTURES.keys() & table.REFUSED.keys() == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_row_fits_the_model(family, make_tiny):
    row, model = table.find(family), make_tiny(family)
    stack = attrgetter(row.stack)(model)
    assert isinstance(stack, nn.ModuleList)
    assert type(model).__name__ == row.model_class
    assert len(stack) == getattr(model.config, row.count) == 6
    assert getattr(model.config, row.hidden) == 32
    assert row.positions is None or getattr(model.config, row.positions) == 64
    assert type(model.config)().tie_word_embeddings == row.tied
    assert set(model._keep_in_fp32_modules_strict or ()) == set(row.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_field_names_are_those_of_the_json(family):
    row = table.find(family)
    written = AutoConfig.for_model(family).to_dict().keys()
    named = {row.count, row.hidden, *row.thresholds, *row.unread, *(name for rule in row.rules for name in rule.names)}
    assert named - written == set()
    assert row.positions is None or row.positions in written


@pytest.mark.parametrize("family", FAMILIES)
def test_every_config_field_that_speaks_of_layers_is_dealt_with(family):
    row = table.find(family)
    written = AutoConfig.for_model(family).to_dict()
    known = {row.count, table.APPENDED, *row.per_layer, *row.thresholds, *row.unread}
    known |= {name for rule in row.rules for name in rule.names} | {refusal.field for refusal in row.refusals}
    count = written[row.count]
    lists = {name for name, value in written.items() if isinstance(value, list) and len(value) == count}
    named = {name for name in written if SPEAKS_OF_LAYERS.search(name) and "norm" not in name}
    assert (named | lists) - known - SPEAK_OF_NONE == set()


def test_unknown_family_is_answered_with_the_known_ones():
    with pytest.raises(UnsupportedArchitecture, match=r"'mixtrall' is not supported; .*Nearest: mixtral"):
        table.find("mixtrall")


def test_a_family_refused_by_name_is_answered_with_the_reason():
    with pytest.raises(UnsupportedArchitecture, match=r"'diffllama' cannot be pruned: .* computed from its index"):
        table.find("diffllama")


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
