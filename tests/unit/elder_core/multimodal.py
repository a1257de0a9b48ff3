"""Tiny models that see as well, from their own config classes, each with one image among the tokens."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from elder_core.architectures.table import MULTIMODAL
from tests.unit.elder_core.families import VOCABULARY, make_unlike, tiny_config

IMAGE = VOCABULARY  # the token that stands for a part of an image
BEFORE = VOCABULARY + 1  # the token before an image
NEVER = [IMAGE, BEFORE, VOCABULARY + 2]  # what is not said in answer
ROTARY = {
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [1, 1, 2],
        "partial_rotary_factor": 1.0,
        "rope_theta": 1e4,
    }
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
FINE: dict[str, Any] = {**VISION, "patch_size": 4}  # for those that make one token of four patches
QWEN: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 32,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 4,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}
GLM: dict[str, Any] = {**QWEN, "image_size": 16}
QWEN_3: dict[str, Any] = {**QWEN, "num_position_embeddings": 16}
PIXTRAL: dict[str, Any] = {**VISION, "head_dim": 8, "image_size": 32, "model_type": "pixtral"}
SAM: dict[str, Any] = {
    **VISION,
    "patch_size": 2,
    "mlp_dim": 48,
    "output_channels": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
    "initializer_range": 0.02,  # the usual 1e-10 says nothing
}


MUSE: dict[str, Any] = {
    "vision_config": {**FINE, "pos_emb_height": 4, "pos_emb_width": 4},
    "image_token_id": IMAGE,
    "out_hidden_size": 128,
    "projector_hidden_size": 32,
}


@dataclass(frozen=True)
class Sight:
    """How the tiny model of a family sees.

    `config` is what its config needs besides that of its text part, `pixels` the shape of an image, `tokens` how many
    stand for it, `given` what else the model takes with it, and `marks` are what it calls the mask of those tokens.
    """

    config: dict[str, Any]
    pixels: tuple[int, ...] = (1, 3, 16, 16)
    tokens: int = 4
    given: dict[str, Tensor] = field(default_factory=dict)
    marks: tuple[str, ...] = ()


GRID = torch.tensor([[1, 4, 4]])
CLIP: dict[str, Any] = {"vision_config": {**VISION, "model_type": "clip_vision_model"}, "image_token_index": IMAGE}
TILED: dict[str, Any] = {
    "pixels": (1, 2, 3, 16, 16),
    "tokens": 10,
    "given": {"image_sizes": torch.tensor([[16, 16]])},
}
PATCHES: dict[str, Any] = {"pixels": (16, 3 * 2 * 4 * 4), "given": {"image_grid_thw": GRID}}


def qwen(vision: dict[str, Any]) -> Sight:
    config = {"vision_config": vision, "image_token_id": IMAGE, "vision_start_token_id": BEFORE}
    return Sight(config, **PATCHES, marks=("mm_token_type_ids",))


SIGHTS: dict[str, Sight] = {
    "aria": Sight({"vision_config": VISION, "image_token_index": IMAGE, "projector_patch_to_query_dict": {4: 4}}),
    "aya_vision": Sight({"vision_config": FINE, "image_token_index": IMAGE}),
    "cohere2_vision": Sight({"vision_config": FINE, "image_token_id": IMAGE, "alignment_intermediate_size": 48}),
    "deepseek_ocr2": Sight(
        {
            "vision_config": {
                "sam_config": {**SAM, "image_size": 64, "patch_size": 8, "downsample_channels": [16, 32]},
                "encoder_config": {**VISION, "num_key_value_heads": 2},
            },
            "image_token_id": IMAGE,
        },
        pixels=(1, 3, 64, 64),
        tokens=145,
    ),
    "deepseek_vl": Sight({"vision_config": VISION, "image_token_id": IMAGE}),
    "deepseek_vl_hybrid": Sight(
        {"vision_config": VISION, "high_res_vision_config": SAM, "image_token_id": IMAGE},
        given={"high_res_pixel_values": torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)},
    ),
    "exaone4_5": Sight(
        {
            "vision_config": {**QWEN, "num_key_value_heads": 2},
            "image_token_id": IMAGE,
            "video_token_id": VOCABULARY + 2,
        },
        **PATCHES,
    ),
    "gemma3": Sight(
        {"vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": IMAGE, "image_token_id": IMAGE},
        marks=("token_type_ids",),
    ),
    "glm46v": Sight({"vision_config": GLM, "image_token_id": IMAGE}, **PATCHES, marks=("mm_token_type_ids",)),
    "glm4v": Sight({"vision_config": GLM, "image_token_id": IMAGE}, **PATCHES, marks=("mm_token_type_ids",)),
    "glm4v_moe": Sight({"vision_config": GLM, "image_token_id": IMAGE}, **PATCHES, marks=("mm_token_type_ids",)),
    "glm_ocr": Sight({"vision_config": GLM, "image_token_id": IMAGE}, **PATCHES, marks=("mm_token_type_ids",)),
    "glmga": Sight({"vision_config": GLM, "image_token_id": IMAGE}, **PATCHES, marks=("mm_token_type_ids",)),
    "got_ocr2": Sight({"vision_config": SAM, "image_token_index": IMAGE}),
    "hunyuan_vl": Sight(
        {
            "vision_config": {
                **FINE,
                "num_key_value_heads": 4,
                "max_image_size": 16,
                "out_hidden_size": 32,
                "text_hidden_size": 32,
            },
            "image_token_id": IMAGE,
        },
        pixels=(16, 3 * 4 * 4),
        tokens=8,
        given={"image_grid_thw": GRID},
        marks=("mm_token_type_ids",),
    ),
    "hyperclovax_vision_v2": Sight(
        {"vision_config": QWEN, "image_token_id": IMAGE},
        **PATCHES,
    ),
    "idefics2": Sight(
        {
            "vision_config": VISION,
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            },
            "image_token_id": IMAGE,
        },
        pixels=(1, 1, 3, 16, 16),
    ),
    "idefics3": Sight(
        {"vision_config": VISION, "image_token_id": IMAGE, "scale_factor": 2}, pixels=(1, 1, 3, 16, 16), tokens=1
    ),
    "internvl": Sight(
        {"vision_config": {**VISION, "image_size": [16, 16], "patch_size": [8, 8]}, "image_token_id": IMAGE}, tokens=1
    ),
    "lfm2_vl": Sight(
        {"vision_config": {**FINE, "num_patches": 16}, "image_token_id": IMAGE, "projector_hidden_size": 32},
        pixels=(1, 16, 3 * 4 * 4),
        given={"spatial_shapes": torch.tensor([[4, 4]]), "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long)},
    ),
    "lfm3_vl": Sight(
        {
            "vision_config": {**FINE, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
            "image_token_id": IMAGE,
            "projector_hidden_size": 32,
        },
        **PATCHES,
    ),
    "lighton_ocr": Sight(
        {"vision_config": PIXTRAL, "image_token_id": IMAGE, "spatial_merge_size": 2},
        pixels=(1, 3, 32, 32),
        given={"image_sizes": torch.tensor([[32, 32]])},
    ),
    "llava": Sight(CLIP),
    "llava_next": Sight({**CLIP, "image_grid_pinpoints": [[16, 16]]}, **TILED),
    "llava_next_video": Sight({**CLIP, "image_grid_pinpoints": [[16, 16]]}, **TILED),
    "llava_onevision": Sight(
        {"vision_config": VISION, "image_token_index": IMAGE, "image_grid_pinpoints": [[16, 16]]}, **TILED
    ),
    "minicpm_ocr": Sight(
        {"vision_config": {**FINE, "insert_layer_id": 0}, "image_token_id": IMAGE, "downsample_mode": "4x"},
        pixels=(1, 3, 4, 16 * 4),
        given={"target_sizes": torch.tensor([[4, 4]])},
    ),
    "minicpmv4_6": Sight(
        {"vision_config": {**FINE, "insert_layer_id": 0}, "image_token_id": IMAGE},
        pixels=(1, 3, 4, 64 * 4),
        given={"target_sizes": torch.tensor([[8, 8]])},
    ),
    "minicpmv4_7": Sight(
        {"vision_config": {**FINE, "insert_layer_id": 0}, "image_token_id": IMAGE, "image_start_id": BEFORE},
        pixels=(1, 3, 4, 64 * 4),
        given={"target_sizes": torch.tensor([[8, 8]])},
        marks=("mm_token_type_ids",),
    ),
    "minimax_m3_vl": Sight({"vision_config": FINE, "image_token_index": IMAGE, "projector_hidden_size": 32}, **PATCHES),
    "mistral3": Sight(
        {"vision_config": PIXTRAL, "image_token_index": IMAGE, "spatial_merge_size": 2},
        pixels=(1, 3, 32, 32),
        given={"image_sizes": torch.tensor([[32, 32]])},
    ),
    "muse_glimmer": Sight(MUSE, **PATCHES),
    "muse_spark": Sight(
        {
            **MUSE,
            "audio_config": {
                "patch_sizes": [2, 2],
                "hidden_sizes": [8, 16],
                "depths": [1, 1],
                "num_hidden_layers": 2,
                "out_hidden_size": 32,
            },
        },
        **PATCHES,
    ),
    "nemotron_h_omni": Sight(
        {
            "vision_config": {**FINE, "model_type": "radio", "max_img_size": 16, "video_temporal_patch_size": 2},
            "image_token_id": IMAGE,
            "audio_token_id": VOCABULARY + 2,
            "projector_hidden_size": 32,
            "vision_hidden_size": 32,
        },
        pixels=(16, 3 * 4 * 4),
        given={"image_grid_hw": torch.tensor([[4, 4]])},
    ),
    "ovis2": Sight(
        {
            "vision_config": {**VISION, "vocab_size": 16, "num_visual_indicator_tokens": 2},
            "image_token_id": IMAGE,
            "visual_indicator_token_ids": [BEFORE, VOCABULARY + 2],
            "hidden_size": 32,
            "vocab_size": VOCABULARY + 3,
        }
    ),
    "paddleocr_vl": Sight(
        {"vision_config": FINE, "image_token_id": IMAGE},
        pixels=(16, 3, 4, 4),
        given={"image_grid_thw": GRID},
        marks=("mm_token_type_ids",),
    ),
    "paligemma": Sight(
        {"vision_config": {**VISION, "projection_dim": 32}, "image_token_index": IMAGE, "projection_dim": 32},
        given={"token_type_ids": torch.tensor([[0] * 12 + [1] * 12])},  # the prompt is read in both directions
    ),
    "pp_chart2table": Sight({"vision_config": SAM, "image_token_index": IMAGE}),
    "qwen2_5_omni_thinker": Sight(
        {
            "vision_config": QWEN,
            "audio_config": {
                "d_model": 32,
                "encoder_layers": 1,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 48,
                "output_dim": 32,
            },
            "image_token_index": IMAGE,
            "vision_start_token_id": BEFORE,
        },
        **PATCHES,
    ),
    "qwen2_5_vl": qwen(QWEN),
    "qwen2_vl": qwen(QWEN),
    "qwen3_5": qwen(QWEN_3),
    "qwen3_5_moe": qwen(QWEN_3),
    "smolvlm": Sight(
        {"vision_config": VISION, "image_token_id": IMAGE, "scale_factor": 2}, pixels=(1, 1, 3, 16, 16), tokens=1
    ),
    "video_llama_3": Sight(
        {"vision_config": FINE, "image_token_id": IMAGE},
        pixels=(16, 3 * 4 * 4),
        given={"image_grid_thw": GRID, "image_merge_sizes": torch.tensor([2])},
    ),
    "video_llava": Sight(CLIP),
    "vipllava": Sight({**CLIP, "vision_feature_layer": [-2, -1]}),
}

# family of the text part → what its config needs here besides what it needs alone
TEXTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "glm4v_text", "glm4v_moe_text", "glm_ocr_text"),
        ROTARY,
    ),
    **dict.fromkeys(("hunyuan_vl_text", "paddleocr_vl_text", "qwen3_5_text", "qwen3_5_moe_text"), ROTARY),
}


def multimodal_config(model_type: str, text_type: str | None = None, **settings: Any) -> PreTrainedConfig:
    """The config of a tiny model, its text part of the first family in its row unless another is named.

    `settings` are of the text part; whether embeddings are tied is said of the whole model, too.
    """
    text_type = text_type or MULTIMODAL[model_type].texts[0]
    needed = deepcopy(TEXTS.get(text_type, {}))
    text = tiny_config(text_type, **{"vocab_size": VOCABULARY + 3, **needed, **settings}).to_dict()
    tied = {name: settings[name] for name in ("tie_word_embeddings",) if name in settings}
    return AutoConfig.for_model(model_type, **SIGHTS[model_type].config, **tied, text_config=text)


def each_seeing() -> list[Any]:
    """(family, family of its text part): `make test` runs the first of each family, `make test-architectures` all."""
    return [
        pytest.param(row.model_type, text, marks=() if text == row.texts[0] else pytest.mark.every_family)
        for row in MULTIMODAL.values()
        for text in row.texts
    ]


def build_multimodal(
    model_type: str, text_type: str | None = None, *, seed: int = 0, **settings: Any
) -> PreTrainedModel:
    """A float32 model in eval mode with 6 decoder layers, unless `settings` say otherwise, that all matter visibly."""
    torch.manual_seed(seed)
    config = multimodal_config(model_type, text_type, **settings)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)  # Gemma 3's begins with images that say nothing
            if parameter.ndim > 1:
                parameter.mul_(5)
    make_unlike(model, seed)
    return model.eval()


def with_image(model_type: str) -> dict[str, Tensor]:
    """Token ids `[1, seq]`, an image among them, and the image as the model takes it."""
    sight = SIGHTS[model_type]
    ids = torch.arange(1, max(25, sight.tokens + 8)) * 7 % VOCABULARY
    ids[1] = BEFORE
    ids[2 : 2 + sight.tokens] = IMAGE
    pixels = torch.randn(sight.pixels, generator=torch.Generator().manual_seed(1))
    marks = {name: (ids == IMAGE).int()[None] for name in sight.marks}
    return {"input_ids": ids[None], "pixel_values": pixels, **sight.given, **marks}
