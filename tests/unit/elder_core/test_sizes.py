"""What a checkpoint will take on disk, before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, configuration_utils

from elder_core import sizes
from elder_core.architectures.architecture import KINDS
from elder_core.errors import NoLayerLeft, TargetAlreadyMet, TargetUnreachable, UnsupportedArchitecture
from elder_core.inspection import inspect_checkpoint
from elder_core.sizes import count_to_remove, fewest_layers, saved_sizes
from elder_core.spec import JobSpec, ModelRef, OutputSpec, Precision
from elder_core.surgery import remove_layers
from elder_core.target import Target
from elder_core.weight_files import checkpoint_bytes
from tests.unit.elder_core.conftest import LAYERS, MakeTiny
from tests.unit.elder_core.families import REPRESENTATIVE

REMOVED = (0, 1)
TIES = [(model_type, tied) for model_type in REPRESENTATIVE for tied in (True, False, None)]


def save(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    return folder


def saved_without(folder: Path, source: Path, dtype: torch.dtype) -> int:
    """Bytes of the checkpoint that removing layers really gives."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    remove_layers(model, REMOVED)
    return checkpoint_bytes(save(folder, model))


@pytest.mark.parametrize(("model_type", "tied"), TIES)
def test_the_size_is_that_of_the_file_to_the_byte(
    make_tiny: MakeTiny, tmp_path: Path, model_type: str, tied: bool | None
) -> None:
    given = {} if tied is None else {"tie_word_embeddings": tied}
    source = save(tmp_path / "source", make_tiny(model_type, **given).to(torch.bfloat16))
    found = saved_sizes(inspect_checkpoint(source), OutputSpec()).without(REMOVED)
    assert found == saved_without(tmp_path / "out", source, torch.bfloat16)


@pytest.mark.parametrize("dtype", [Precision.FLOAT32, Precision.FLOAT16])
def test_another_number_type_has_another_size(tiny_checkpoint: Path, tmp_path: Path, dtype: Precision) -> None:
    found = saved_sizes(inspect_checkpoint(tiny_checkpoint), OutputSpec(dtype=dtype)).without(REMOVED)
    assert found == saved_without(tmp_path / "out", tiny_checkpoint, getattr(torch, dtype.value))


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_head_that_is_stored_twice_is_saved_once(make_tiny: MakeTiny, tmp_path: Path, equal: bool) -> None:
    source = save(tmp_path / "source", make_tiny("llama").to(torch.bfloat16))
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (0 if equal else 1)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    found = saved_sizes(inspect_checkpoint(source), OutputSpec()).without(REMOVED)
    assert found == saved_without(tmp_path / "out", source, torch.bfloat16)


def test_what_old_checkpoints_hold_beside_their_weights_does_not_count(make_tiny: MakeTiny, tmp_path: Path) -> None:
    """As GPT-2's on the hub: without the prefix of the whole model, with its causal masks."""
    source = save(tmp_path / "source", make_tiny("gpt2").to(torch.bfloat16))
    expected = saved_sizes(inspect_checkpoint(source), OutputSpec())
    tensors = load_file(source / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(LAYERS)}
    save_file({**old, **masks}, source / "model.safetensors", metadata={"format": "pt"})
    assert saved_sizes(inspect_checkpoint(source), OutputSpec()) == expected


def test_several_files_take_no_more_than_is_said(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    model.save_pretrained(tmp_path / "out", max_shard_size=20_000)
    cut = saved_sizes(inspect_checkpoint(tiny_checkpoint), OutputSpec())
    cut = sizes.SavedSizes(cut.layers, cut.rest, 20_000)
    assert checkpoint_bytes(tmp_path / "out") <= cut.without(()) < checkpoint_bytes(tmp_path / "out") + 5_000


def test_the_fewest_layers_that_suffice(tiny_checkpoint: Path) -> None:
    found = saved_sizes(inspect_checkpoint(tiny_checkpoint), OutputSpec())
    two = found.without((0, 1))
    assert fewest_layers(found, two) == 2
    assert fewest_layers(found, two - 1) == 3
    assert fewest_layers(found, found.without(()) - 1) == 1


def test_layers_of_unequal_size_are_counted_as_if_the_small_ones_went(tiny_checkpoint: Path) -> None:
    found = saved_sizes(inspect_checkpoint(tiny_checkpoint), OutputSpec())
    small = {name: tensor for name, tensor in found.layers[3].items() if "mlp" not in name}
    mixed = sizes.SavedSizes((*found.layers[:3], small, *found.layers[4:]), found.rest, found.max_shard_bytes)
    assert fewest_layers(mixed, mixed.without((3,))) == 1
    assert fewest_layers(mixed, mixed.without((0,))) == 2


def test_what_cannot_be_had_is_refused_with_the_nearest(tiny_checkpoint: Path) -> None:
    found = saved_sizes(inspect_checkpoint(tiny_checkpoint), OutputSpec())
    least, whole = found.without(range(LAYERS - 1)), found.without(())
    assert fewest_layers(found, least) == LAYERS - 1
    with pytest.raises(TargetUnreachable, match=f"{least:,} or more") as caught:
        fewest_layers(found, least - 1)
    assert caught.value.loc == ("target", "max_bytes")
    with pytest.raises(TargetAlreadyMet, match=f"less than {whole:,}"):
        fewest_layers(found, whole)


def test_only_bytes_are_known_before_the_model_is_loaded(
    tiny_checkpoint: Path, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    def count(checkpoint: Path, **target: Any) -> int | None:
        spec = JobSpec(model=ModelRef(id="m"), target=Target(**target))
        return count_to_remove(spec, inspect_checkpoint(checkpoint))

    assert count(tiny_checkpoint, max_bytes=checkpoint_bytes(tiny_checkpoint) - 1) == 1
    assert count(tiny_checkpoint, min_speedup=1.2) is None
    assert count(tiny_checkpoint, max_perplexity_increase=0) is None
    with pytest.raises(NoLayerLeft):
        count(save(tmp_path / "one", make_tiny("llama", num_hidden_layers=1)), min_speedup=1.2)


def test_layers_that_the_config_cannot_do_without_are_refused_before_anything_is_loaded(
    make_tiny: MakeTiny, tmp_path: Path
) -> None:
    make_tiny("jamba").save_pretrained(tmp_path)
    info = inspect_checkpoint(tmp_path)
    assert count_to_remove(JobSpec(model=ModelRef(id="local:jamba"), layers=(0,)), info) == 1
    with pytest.raises(UnsupportedArchitecture, match=r"layers \[2\] cannot be removed together"):
        count_to_remove(JobSpec(model=ModelRef(id="local:jamba"), layers=(2,)), info)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["attn_layer_period"]  # what it is then, only transformers knows
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert count_to_remove(JobSpec(model=ModelRef(id="local:jamba"), layers=(2,)), info) == 1


def test_old_names_of_kinds_of_layers_are_those_of_transformers() -> None:
    assert configuration_utils._LEGACY_LAYER_TYPE_REMAP == KINDS


def test_a_config_with_old_names_of_kinds_is_understood(make_tiny: MakeTiny, tmp_path: Path) -> None:
    """As Granite 4.0 is published."""
    make_tiny("granitemoehybrid").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    old = {"linear_attention": "mamba", "full_attention": "attention"}
    settings["layer_types"] = [old[kind] for kind in settings["layer_types"]]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert settings["layer_types"] == ["mamba", "mamba", "attention"] * 2
    spec = JobSpec(model=ModelRef(id=str(tmp_path)), layers=(0, 1, 2))
    assert count_to_remove(spec, inspect_checkpoint(tmp_path)) == 3
    with pytest.raises(UnsupportedArchitecture, match="no layer of the kind"):
        count_to_remove(spec.model_copy(update={"layers": (2, 5)}), inspect_checkpoint(tmp_path))
