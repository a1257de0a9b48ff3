"""Layers removed or bypassed in memory, for every supported family."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from elder_core.architectures import table
from elder_core.architectures.architecture import Architecture
from elder_core.architectures.table import ARCHITECTURES
from elder_core.errors import DuplicateLayers, LayersOutOfRange, NoLayerLeft, UnsupportedArchitecture
from elder_core.surgery import (
    apply_changes,
    bypassed,
    config_changes,
    decoder_layers,
    layer_map,
    parameters_only_in,
    remove_layers,
)
from tests.unit.elder_core.acceptance import PROMPT, generated, logits
from tests.unit.elder_core.families import each, tiny_config

KEPT = ((1, 2, 3, 4, 5), (0, 2, 3, 5), (0, 2, 4), (1, 3, 5), (0, 1, 2), (5,))
# what a program that knows no lists of layers makes of a setting beside them: its list, of so many layers
READ_ALONE: dict[str, tuple[str, Callable[[int, int], list[Any]]]] = {
    "first_k_dense_replace": (
        "mlp_layer_types",
        lambda first, count: ["dense" if layer < first else "sparse" for layer in range(count)],
    ),
    **dict.fromkeys(
        (
            "sliding_window_pattern",
            "_sliding_window_pattern",
            "full_attention_interval",
            "global_attn_every_n_layers",
            "layer_group_size",
        ),
        (
            "layer_types",
            lambda every, count: ["other" if (layer + 1) % every else "full_attention" for layer in range(count)],
        ),
    ),
    "no_rope_layer_interval": (
        "no_rope_layers",
        lambda every, count: [int((layer + 1) % every != 0) for layer in range(count)],
    ),
    "interleave_moe_layer_step": ("moe_layers", lambda every, count: list(range(every - 1, count, every))),
}


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_no_setting_contradicts_the_list_of_layers_beside_it(family, tmp_path):
    """Whether or not transformers knows it there: it keeps what a config has, and other programs read that alone."""
    tiny = tiny_config(family)
    lists = tiny.to_dict()
    dense = (lists.get("mlp_layer_types") or []).count("dense")
    there = {
        name: dense if name == "first_k_dense_replace" else 2 for name, (of, _) in READ_ALONE.items() if lists.get(of)
    }
    for kept in KEPT:
        config = tiny_config(family, **there)
        try:
            apply_changes(config, config_changes(table.find(family), config, kept))
        except UnsupportedArchitecture:
            continue
        config.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        for name, (of, read) in READ_ALONE.items():
            if name not in saved or of not in saved or family == "cohere2_moe":
                continue
            found = (
                saved[of]
                if of != "layer_types"
                else [kind if kind == "full_attention" else "other" for kind in saved[of]]
            )
            assert read(saved[name], len(kept)) == found, (name, kept)


def test_cohere2_moe_counts_its_layers_without_and_with_experts_apart(make_tiny):
    """As its config class does, from settings alone: it must come to the lists that are written."""
    model = make_tiny("cohere2_moe", layer_types=None, mlp_layer_types=None, first_k_dense_replace=2)
    remove_layers(model, (0, 3))
    written = model.config.to_dict()
    names = ("sliding_window_pattern", "prefix_dense_sliding_window_pattern")
    read = type(model.config)(
        num_hidden_layers=4, first_k_dense_replace=1, **{name: written[name] for name in names if name in written}
    )
    assert (read.layer_types, read.mlp_layer_types) == (written["layer_types"], written["mlp_layer_types"])


def test_cohere2_moe_turns_queries_by_position_in_the_layers_that_did(make_tiny):
    """Its dense layers do so if one number is 1, whatever the list says that the number otherwise fills in."""
    kinds = ["sliding_attention", "full_attention", "full_attention"] * 2
    model = make_tiny("cohere2_moe", layer_types=kinds, mlp_layer_types=["dense"] * 6)
    remove_layers(model, (1, 3, 4, 5))
    assert (model.config.layer_types, model.config.prefix_dense_sliding_window_pattern) == (kinds[:2], 1)


@pytest.mark.parametrize("family", each(ARCHITECTURES))
def test_config_and_indices_are_right_in_memory(family, make_tiny):
    model = make_tiny(family)
    assert remove_layers(model, (0, 1)) == {2: 0, 3: 1, 4: 2, 5: 3}
    assert model.config.num_hidden_layers == 4
    model.config.validate()
    for index, layer in enumerate(decoder_layers(model)):
        numbers = {vars(module).get(name) for module in layer.modules() for name in ("layer_idx", "layer_id")}
        assert numbers - {None} == {index} or not numbers - {None}  # some layers of RecurrentGemma need no number
    assert len(DynamicCache(config=model.config).layers) in (0, 4)


def test_layer_types_follow_their_layers(make_tiny):
    model = make_tiny("qwen2")
    remove_layers(model, (0, 1, 2))
    assert model.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


def test_threshold_counts_the_layers_kept_below_it(make_tiny):
    model = make_tiny("qwen3")
    assert model.config.max_window_layers == 3
    remove_layers(model, (0, 4))
    assert model.config.max_window_layers == 2
    assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2


def test_all_sliding_layers_may_go(make_tiny):
    model = make_tiny("qwen2")
    remove_layers(model, (0, 2, 4))
    assert set(model.config.layer_types) == {"full_attention"}
    torch.testing.assert_close(generated(model, use_cache=True), generated(model, use_cache=False), rtol=0, atol=1e-4)


def test_untied_norms_after_layers_are_supported(make_tiny):
    model = make_tiny("opt", do_layer_norm_before=False, word_embed_proj_dim=16)  # the shape of opt-350m
    with bypassed(model, (1, 4)):
        expected = logits(model)
    remove_layers(model, (4, 1))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_tied_embeddings_stay_tied(tiny_llama):
    remove_layers(tiny_llama, (3,))
    assert tiny_llama.lm_head.weight is tiny_llama.model.embed_tokens.weight


def test_parameters_only_in_layers_are_those_that_nothing_else_uses(tiny_llama):
    layers = decoder_layers(tiny_llama)
    alone = parameters_only_in(tiny_llama, (1, 4))
    assert {id(found) for found in alone} == {id(found) for layer in (1, 4) for found in layers[layer].parameters()}
    layers[4].mlp.up_proj.weight = layers[2].mlp.up_proj.weight
    layers[4].mlp.down_proj.weight = layers[1].mlp.down_proj.weight
    left = parameters_only_in(tiny_llama, (1, 4))
    assert len(left) == len(alone) - 2, "one is used elsewhere, and one twice in the layers themselves"
    assert all(found is not layers[2].mlp.up_proj.weight for found in left)


def test_bypassing_leaves_the_model_as_it_was(tiny_llama):
    before = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    expected = logits(tiny_llama)
    with bypassed(tiny_llama, (1, 2)), bypassed(tiny_llama, (2, 3)):
        inside = logits(tiny_llama)
    with bypassed(tiny_llama, (1, 2, 3)):
        assert torch.equal(logits(tiny_llama), inside)
    assert torch.equal(logits(tiny_llama), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_llama.state_dict().items())
    assert tiny_llama.config.use_cache
    assert all("forward" not in layer.__dict__ for layer in decoder_layers(tiny_llama))


def test_bypassing_ends_on_an_error(tiny_llama):
    expected = logits(tiny_llama)
    with pytest.raises(KeyboardInterrupt), bypassed(tiny_llama, (0,)):
        raise KeyboardInterrupt
    assert torch.equal(logits(tiny_llama), expected)


def test_a_nested_bypass_of_the_same_layer_ends_with_the_outer_one(tiny_llama):
    with bypassed(tiny_llama, (2,)):
        expected = logits(tiny_llama)
        with bypassed(tiny_llama, (2,)):
            pass
        assert torch.equal(logits(tiny_llama), expected)


def test_bypassed_layers_are_not_computed(tiny_llama):
    def fail(*_):
        raise AssertionError("the layer's attention was computed")

    decoder_layers(tiny_llama)[2].self_attn.register_forward_hook(fail)
    with bypassed(tiny_llama, (2,)):
        logits(tiny_llama)


def test_generation_while_bypassed_needs_no_cache(make_tiny):
    model = make_tiny("llama")
    with bypassed(model, (0, 3)):
        without = generated(model)
        with pytest.raises(AssertionError, match="no key-value cache"):
            generated(model, use_cache=True)
    remove_layers(model, (0, 3))
    torch.testing.assert_close(without, generated(model, use_cache=True), rtol=0, atol=1e-4)


def test_gradients_pass_through_bypassed_layers(tiny_llama):
    with bypassed(tiny_llama, (1,)):
        tiny_llama(PROMPT, labels=PROMPT).loss.backward()
    first, skipped = decoder_layers(tiny_llama)[0], decoder_layers(tiny_llama)[1]
    assert first.mlp.up_proj.weight.grad is not None
    assert skipped.mlp.up_proj.weight.grad is None


@pytest.mark.parametrize(
    ("removed", "error"),
    [((6,), LayersOutOfRange), ((-1,), LayersOutOfRange), ((1, 1), DuplicateLayers), (range(6), NoLayerLeft)],
)
def test_a_refused_removal_changes_nothing(removed, error, tiny_llama):
    expected = logits(tiny_llama)
    with pytest.raises(error):
        remove_layers(tiny_llama, removed)
    assert torch.equal(logits(tiny_llama), expected)


def test_a_config_that_contradicts_itself_afterwards_changes_nothing(tiny_llama, monkeypatch):
    expected, settings = logits(tiny_llama), tiny_llama.config.to_dict()
    monkeypatch.setattr(type(tiny_llama.config), "validate", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        remove_layers(tiny_llama, (1,))
    assert torch.equal(logits(tiny_llama), expected)
    assert tiny_llama.config.to_dict() == settings


def test_bypassing_a_layer_that_is_not_there_is_refused(tiny_llama):
    with pytest.raises(LayersOutOfRange, match="0 to 5"), bypassed(tiny_llama, (6,)):
        pass


def test_attention_scaled_by_layer_index_is_refused(make_tiny):
    model = make_tiny("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UnsupportedArchitecture, match="scale_attn_by_inverse_layer_idx"):
        remove_layers(model, (1,))


def test_only_the_fields_that_speak_of_layers_change():
    row = Architecture("x", "X", "model.layers", count="depth", per_layer=("types", "absent"), thresholds=("first",))
    settings = {"depth": 5, "types": ["a", "b", "c", "d", "e"], "absent": None, "first": 3, "hidden_size": 5}
    assert table.changes(row, settings, [0, 2, 4]) == {"depth": 3, "types": ["a", "c", "e"], "first": 2}
    assert settings["types"] == ["a", "b", "c", "d", "e"]
    assert table.changes(row, {"depth": 5}, [0, 2, 4]) == {"depth": 3}


def test_what_the_first_authors_say_of_layers_is_said_of_those_that_stay(make_tiny):
    """transformers keeps these settings and does not read them, or not beside its own; other programs do."""
    model = make_tiny("mimo_v2_flash", hybrid_layer_pattern=[0, 1, 1, 0, 1, 1], moe_layer_freq=[0, 1, 1, 1, 1, 0])
    remove_layers(model, (1, 5))
    settings = model.config.to_dict()
    assert (settings["hybrid_layer_pattern"], settings["moe_layer_freq"]) == ([0, 1, 0, 1], [0, 1, 1, 1])


def test_inklings_number_of_dense_layers_goes_with_the_list_beside_it(make_tiny):
    model = make_tiny("inkling_text", dense_mlp_idx=2)
    assert model.config.mlp_layer_types == ["dense"] * 2 + ["sparse"] * 4
    remove_layers(model, (0, 4))
    settings = model.config.to_dict()
    assert (settings["dense_mlp_idx"], settings["mlp_layer_types"]) == (1, ["dense"] + ["sparse"] * 3)


def test_what_the_first_authors_say_of_layers_agrees_with_what_transformers_says(make_tiny):
    """Kimi Linear's own settings number layers from 1; read alone they give the lists that transformers writes."""
    own = {
        "linear_attn_config": {"full_attn_layers": [2, 5], "kda_layers": [1, 3, 4, 6]},
        "first_k_dense_replace": 2,
    }
    model = make_tiny("kimi_linear", layer_types=None, mlp_layer_types=None, **own)
    remove_layers(model, (0, 2))
    written = model.config.to_dict()
    assert written["linear_attn_config"] == {"full_attn_layers": [1, 3], "kda_layers": [2, 4]}
    read = type(model.config)(num_hidden_layers=4, **{name: written[name] for name in own})
    assert (read.layer_types, read.mlp_layer_types) == (written["layer_types"], written["mlp_layer_types"])


def test_a_list_with_an_entry_for_each_layer_of_which_nothing_is_known_is_refused(make_tiny):
    model = make_tiny("llama", sizes_by_layer=[1, 2, 3, 4, 5, 6])
    with pytest.raises(UnsupportedArchitecture, match=r"sizes_by_layer .*take it out of config\.json"):
        remove_layers(model, (1,))
    assert len(decoder_layers(model)) == 6


@given(st.integers(1, 40), st.data())
def test_layer_map_numbers_the_rest_in_order(count, data):
    removed = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    mapping = layer_map(count, removed)
    assert list(mapping.values()) == list(range(count - len(removed)))
    assert sorted(mapping) == list(mapping) == sorted(set(range(count)) - removed)


def test_what_the_config_cannot_say_is_refused_and_changes_nothing(make_tiny):
    model = make_tiny("jamba")
    expected, settings = logits(model), model.config.to_dict()
    with pytest.raises(UnsupportedArchitecture, match=r"layers \[1, 4\] .*no layer with attention would stay"):
        remove_layers(model, (4, 1))
    assert torch.equal(logits(model), expected)
    assert model.config.to_dict() == settings
