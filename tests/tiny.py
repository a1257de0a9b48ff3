"""A tiny checkpoint on disk, for tests that need a model and care little which."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.unit.elder_core.conftest import build_tiny, build_tokenizer


def save_tiny_llama(path: Path) -> None:
    """A bfloat16 Llama of six layers with its byte-level tokenizer."""
    build_tiny("llama").to(torch.bfloat16).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
