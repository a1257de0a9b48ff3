"""Tiny real models of every supported family, a byte-level tokenizer and a saved checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.unit.elder_core.families import LAYERS, POSITIONS, VOCABULARY, build_tiny

END_OF_TEXT = "<|endoftext|>"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"

__all__ = ["LAYERS", "VOCABULARY", "MakeTiny", "build_tiny", "build_tokenizer"]

MakeTiny = Callable[..., PreTrainedModel]


def build_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {END_OF_TEXT: 0} | {byte: index for index, byte in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=POSITIONS,
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def make_tiny() -> MakeTiny:
    """`make_tiny(model_type, *, seed=0, **config)`: a fresh tiny model of that family."""
    return build_tiny


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    """A fresh 6-layer float32 Llama with tied embeddings."""
    return build_tiny("llama")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; id 0 is the end of text, begin of text and padding."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A saved bfloat16 Llama with its tokenizer. Read only: copy it before changing it."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    build_tiny("llama").to(torch.bfloat16).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path
