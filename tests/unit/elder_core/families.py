"""Tiny models of every supported architecture, built from its own config class."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

LAYERS = 6
VOCABULARY = 257  # the end of text and every byte
POSITIONS = 64
NOISE = 0.1
WINDOW = 8  # far shorter than the sequences in the tests

# field of a config → its value, wherever a family's config has that field
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length"), POSITIONS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "n_inner", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    "num_key_value_heads": 2,
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "attention_chunk_size"), WINDOW),
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    # state spaces and linear attention
    **dict.fromkeys(("state_size", "mamba_d_state", "mamba_d_head"), 8),
    **dict.fromkeys(("mamba_n_heads", "linear_num_heads"), 8),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    "mamba_d_ssm": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
}
SLIDING = ["sliding_attention", "full_attention"] * (LAYERS // 2)
LINEAR = ["linear_attention", "linear_attention", "full_attention"] * (LAYERS // 3)
DENSE_FIRST = ["dense"] * 2 + ["sparse"] * (LAYERS - 2)

LATENT: dict[str, Any] = {"num_key_value_heads": 4, "qk_head_dim": 16}
STEPS: dict[str, Any] = {"decoder_sparse_step": 2, "mlp_only_layers": [3]}  # experts at 1 and 5

# model_type → what else its config needs, for a model whose layers are of all kinds that it can have
TINY: dict[str, dict[str, Any]] = {
    "afmoe": {"num_dense_layers": 2, "global_attn_every_n_layers": 2},
    "axk1": {**LATENT, "mlp_layer_types": DENSE_FIRST},
    "bailing_hybrid": {**LATENT, "layer_group_size": 3},
    "bamba": {"attn_layer_indices": [1, 4]},
    "codegen": {"rotary_dim": 4},
    "cohere2_moe": {"mlp_layer_types": DENSE_FIRST},
    "ctrl": {"dff": 48},
    "deepseek_v2": {**LATENT, "first_k_dense_replace": 2},
    "deepseek_v3": {**LATENT, "first_k_dense_replace": 2},
    "deepseek_ocr2_text": {"mlp_layer_types": DENSE_FIRST},
    "dots1": {"first_k_dense_replace": 2, "max_window_layers": 3},
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 4},
    "exaone_moe": {"first_k_dense_replace": 2, "sliding_window_pattern": 3},
    "flint": {**STEPS, "layer_types": SLIDING},
    "glm4_moe": {"first_k_dense_replace": 2},
    "glm4_moe_lite": LATENT,
    "glm4v_moe_text": {"first_k_dense_replace": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "gptj": {"rotary_dim": 4},
    "granite_swa": {"layer_rope_theta": [1e4, 1e3, 1e4, 1e3, 1e2, 0.0]},
    "granitemoe_swa": {"layer_rope_theta": [1e4, 1e3, 1e4, 1e3, 1e2, 0.0]},
    "granitemoehybrid": {"layer_types": LINEAR},
    "hunyuan_v1_moe": {"moe_topk": [2, 1, 2, 1, 2, 2]},
    "inkling_text": {
        "layer_types": ["hybrid_sliding", "hybrid"] * (LAYERS // 2),
        "mlp_layer_types": DENSE_FIRST,
        **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4),
        **dict.fromkeys(("swa_head_dim", "d_rel", "rel_extent", "sliding_window_size"), 8),
        "logits_mup_width_multiplier": 1.0,
    },
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 8},
    "kimi_linear": {**LATENT, "layer_types": LINEAR, "mlp_layer_types": DENSE_FIRST},
    "kolibri1": {"layer_types": SLIDING},
    "laguna": {
        "layer_types": SLIDING,
        "num_attention_heads_per_layer": [4, 2, 4, 2, 4, 4],
        "mlp_layer_types": DENSE_FIRST,
    },
    "lfm2": {"layer_types": ["conv", "conv", "full_attention"] * (LAYERS // 3)},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * (LAYERS // 3), "num_dense_layers": 2},
    "llama": {"tie_word_embeddings": True},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "mellum": {"layer_types": SLIDING, "mlp_layer_types": DENSE_FIRST},
    "minicpm3": LATENT,
    "minimax_m3_vl_text": {
        "layer_types": ["minimax_m3_sparse", "full_attention"] * (LAYERS // 2),
        "mlp_layer_types": DENSE_FIRST,
        "dense_intermediate_size": 48,
        "index_head_dim": 8,
        **dict.fromkeys(("index_n_heads", "index_topk_blocks"), 2),  # of the blocks that there are fewer than half
        **dict.fromkeys(("rotary_dim", "index_block_size"), 4),
    },
    "ministral": {"layer_types": SLIDING},
    "mistral4": {**LATENT, "head_dim": 16, "first_k_dense_replace": 2},
    "muse_glimmer_text": {"layer_rope_theta": [1e4, 0, 1e4, 0, 1e4, 0], "layer_types": SLIDING},
    "muse_spark_text": {
        "layer_rope_theta": [1e4, 0, 1e4, 0, 1e4, 0],
        "layer_types": SLIDING,
        "mlp_layer_types": DENSE_FIRST,
        "moe_hidden_size": 16,
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "full_attention"],
        "n_groups": 1,
        **dict.fromkeys(("ssm_state_size", "mamba_num_heads", "mamba_head_dim"), 8),
        "moe_shared_expert_intermediate_size": 16,
    },
    "olmo_hybrid": {"layer_types": LINEAR},
    "opt": {"dropout": 0.0},
    "qwen2": {"use_sliding_window": True, "layer_types": SLIDING},
    "qwen2_moe": {**STEPS, "use_sliding_window": True, "layer_types": SLIDING},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 3},
    "qwen3_5_moe_text": {"layer_types": LINEAR},
    "qwen3_5_text": {"layer_types": LINEAR},
    "qwen3_moe": {**STEPS, "use_sliding_window": True},
    "qwen3_next": {**STEPS, "layer_types": LINEAR},
    "smollm3": {"use_sliding_window": True},
    "youtu": LATENT,
}


# of each kind of stack and of rule one or two: for tests that would take too long with all families
REPRESENTATIVE = (
    *("gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3"),
    *("bloom", "deepseek_v3", "falcon_h1", "gemma3_text", "gpt_neo", "jamba", "mamba", "qwen3_next"),
)


def each(families: Iterable[str], representative: Collection[str] = REPRESENTATIVE) -> list[Any]:
    """Values of a parameter: `make test` runs those that are representative, `make test-architectures` all of them."""
    return [
        pytest.param(family, marks=() if family in representative else pytest.mark.every_family)
        for family in sorted(families)
    ]


def tiny_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    config = AutoConfig.for_model(model_type)
    known = {*config.to_dict(), *type(config).attribute_map}
    small = {name: value for name, value in SMALL.items() if name in known}
    return AutoConfig.for_model(model_type, **{**small, **TINY.get(model_type, {}), **overrides})


def build_tiny(model_type: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A 6-layer float32 model in eval mode whose layers all change their input visibly."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the usual 0.02 leaves the residual stream almost as it was
                parameter.mul_(5)
    make_unlike(model, seed)
    return model.eval()


@torch.no_grad()
def make_unlike(model: PreTrainedModel, seed: int) -> None:
    """Add noise to norms, biases and what else is one number for each feature, expert or head.

    They are the same in all layers of a new model, and one layer's in the place of another's would not be noticed. What
    is computed anew when a model is loaded, such as rotation frequencies, is left alone.
    """
    random, saved = torch.Generator().manual_seed(seed), model.state_dict().keys()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point() and name in saved:
            tensor.add_(torch.randn(tensor.shape, generator=random) * NOISE)
