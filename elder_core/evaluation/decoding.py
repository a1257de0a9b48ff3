"""Greedy decoding with the cache, one step at a time, without what `generate()` adds around the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model's config allows, in tokens; None where it names no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@torch.inference_mode()
def step(model: PreTrainedModel, ids: torch.Tensor, cache: Cache | None = None) -> tuple[torch.Tensor, Cache]:
    """Read `ids` `[1, n]` after what `cache` holds; return the likeliest next token `[1, 1]` and the longer cache."""
    if "past_key_values" not in _parameters(model):  # models that are all state space, such as Mamba
        output = model(input_ids=ids, use_cache=True, cache_params=cache, **_last_logits_only(model))
        return output.logits[:, -1:].argmax(-1), output.cache_params
    cache = DynamicCache(config=model.config) if cache is None else cache  # RecurrentGemma gives back none of its own
    output = model(input_ids=ids, use_cache=True, past_key_values=cache, **_last_logits_only(model))
    return output.logits[:, -1:].argmax(-1), cache


def _last_logits_only(model: PreTrainedModel) -> dict[str, Any]:
    """As `generate()` does: only the last position of a prompt needs its logits, where the architecture can."""
    return {"logits_to_keep": 1} if "logits_to_keep" in _parameters(model) else {}


def _parameters(model: PreTrainedModel) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters
