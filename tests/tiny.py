"""A tiny checkpoint on disk, for tests that need a model and care little which."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.unit.elder_core.conftest import build_tiny, build_tokenizer


def save_tiny_llama(path: Path, *, broken: bool = False) -> None:
    """A bfloat16 Llama of six layers with its byte-level tokenizer; a broken one holds a NaN."""
    model = build_tiny("llama").to(torch.bfloat16)
    if broken:
        model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(path)
    build_tokenizer().save_pretrained(path)
