"""The table against the models that transformers builds."""

from __future__ import annotations

import subprocess
import sys
from operator import attrgetter

import pytest
from torch import nn
from transformers import AutoConfig

from elder_core.architectures import table
from elder_core.errors import UnsupportedArchitecture

FAMILIES = sorted(table.ARCHITECTURES)


def test_the_seven_families_are_there():
    assert FAMILIES == ["gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_row_fits_the_model(family, make_tiny):
    row, model = table.find(family), make_tiny(family)
    stack = attrgetter(row.stack)(model)
    assert isinstance(stack, nn.ModuleList)
    assert type(model).__name__ == row.model_class
    assert len(stack) == getattr(model.config, row.count) == 6
    assert getattr(model.config, row.hidden) == 32
    assert getattr(model.config, row.positions) == 64


@pytest.mark.parametrize("family", FAMILIES)
def test_field_names_are_those_of_the_json(family):
    row = table.find(family)
    written = AutoConfig.for_model(family).to_dict()
    assert {row.count, row.hidden, row.positions, *row.thresholds} <= written.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_config_field_that_speaks_of_layers_is_dealt_with(family):
    row = table.find(family)
    known = {row.count, *row.per_layer, *row.thresholds, *(refusal.field for refusal in row.refusals)}
    speaking = {name for name in AutoConfig.for_model(family).to_dict() if "layer" in name and "layer_norm" not in name}
    assert speaking - known - {"layerdrop"} == set()


def test_unknown_family_is_answered_with_the_known_ones():
    with pytest.raises(UnsupportedArchitecture, match=r"'mamba' is not supported.*gpt2, gpt_neox, llama"):
        table.find("mamba")


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
