"""Tiny models that see as well, from their own config classes, each with one image among the tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from elder_core.architectures.table import MULTIMODAL
from tests.unit.elder_core.families import VOCABULARY, tiny_config

IMAGE = VOCABULARY  # the token that stands for a part of an image
NEVER = [IMAGE, IMAGE + 1, IMAGE + 2]  # what is not said in answer
ROTARY = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
QWEN: dict[str, Any] = {
    "vision_config": {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 4,
        "patch_size": 4,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    },
    "image_token_id": IMAGE,
    "vision_start_token_id": VOCABULARY + 1,
}
SMALL: dict[str, Any] = {
    "vision_config": VISION,
    "image_token_id": IMAGE,
    "scale_factor": 2,
}
LLAVA: dict[str, Any] = {
    "vision_config": {**VISION, "model_type": "clip_vision_model"},
    "image_token_index": IMAGE,
}
# model_type → what its config needs besides that of its text part
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
        "image_token_id": IMAGE,
    },
    "idefics3": SMALL,
    "internvl": {
        "vision_config": {**VISION, "image_size": [16, 16], "patch_size": [8, 8]},
        "image_token_id": IMAGE,
    },
    "llava": LLAVA,
    "llava_next": {**LLAVA, "image_grid_pinpoints": [[16, 16]]},
    "mistral3": {
        "vision_config": {**VISION, "head_dim": 8, "image_size": 32, "model_type": "pixtral"},
        "image_token_index": IMAGE,
        "spatial_merge_size": 2,
    },
    "qwen2_5_vl": QWEN,
    "qwen2_vl": QWEN,
    "smolvlm": SMALL,
}
IMAGE_TOKENS = {"llava_next": 10, "idefics3": 1, "smolvlm": 1, "internvl": 1}  # 4 elsewhere


# family of the text part → what its config needs here besides what it needs alone
TEXTS: dict[str, dict[str, Any]] = {"qwen2_vl_text": ROTARY, "qwen2_5_vl_text": ROTARY}


def multimodal_config(model_type: str, text_type: str | None = None) -> PreTrainedConfig:
    """The config of a tiny model, its text part of the first family in its row unless another is named."""
    text_type = text_type or MULTIMODAL[model_type].texts[0]
    text = tiny_config(text_type, vocab_size=VOCABULARY + 3, **TEXTS.get(text_type, {})).to_dict()
    return AutoConfig.for_model(model_type, **CONFIGS[model_type], text_config=text)


def each_seeing() -> list[Any]:
    """(family, family of its text part): `make test` runs the first of each family, `make test-architectures` all."""
    return [
        pytest.param(row.model_type, text, marks=() if text == row.texts[0] else pytest.mark.every_family)
        for row in MULTIMODAL.values()
        for text in row.texts
    ]


def build_multimodal(model_type: str, text_type: str | None = None) -> PreTrainedModel:
    """A float32 model in eval mode with 6 decoder layers that all change their input visibly."""
    torch.manual_seed(0)
    config = multimodal_config(model_type, text_type)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)  # Gemma 3's begins with images that say nothing
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model.eval()


def with_image(model_type: str) -> dict[str, Tensor]:
    """Token ids `[1, seq]`, an image among them, and the image as the model takes it."""
    ids = torch.arange(1, 25) * 7 % VOCABULARY
    count = IMAGE_TOKENS.get(model_type, 4)
    ids[2 : 2 + count] = IMAGE
    random = torch.Generator().manual_seed(1)
    found = {"input_ids": ids[None], "pixel_values": torch.randn(1, 3, 16, 16, generator=random)}
    if model_type in ("qwen2_vl", "qwen2_5_vl"):
        ids[1] = VOCABULARY + 1
        found["pixel_values"] = torch.randn(16, 3 * 2 * 4 * 4, generator=random)
        found["image_grid_thw"] = torch.tensor([[1, 4, 4]])
        found["mm_token_type_ids"] = (ids == IMAGE).int()[None]
    if model_type == "mistral3":
        found["pixel_values"] = torch.randn(1, 3, 32, 32, generator=random)
        found["image_sizes"] = torch.tensor([[32, 32]])
    if model_type in ("idefics3", "smolvlm"):
        found["pixel_values"] = found["pixel_values"][None]
    if model_type == "llava_next":
        found["pixel_values"] = torch.randn(1, 2, 3, 16, 16, generator=random)
        found["image_sizes"] = torch.tensor([[16, 16]])
    if model_type == "gemma3":
        found["token_type_ids"] = (ids == IMAGE).int()[None]
    return found
