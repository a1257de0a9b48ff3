"""Tiny real models of every supported family, a byte-level tokenizer and a saved checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
LAYERS = 6
VOCABULARY = 257  # END_OF_TEXT and every byte
POSITIONS = 64
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
ROTARY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ALTERNATING = ["sliding_attention", "full_attention"] * (LAYERS // 2)

# model_type → arguments of its config class; sliding windows are far shorter than the sequences in the tests
TINY: dict[str, dict[str, Any]] = {
    "llama": {**ROTARY, "tie_word_embeddings": True},
    "mistral": {**ROTARY, "sliding_window": 8},
    "qwen2": {**ROTARY, "use_sliding_window": True, "sliding_window": 8, "layer_types": ALTERNATING},
    "qwen3": {**ROTARY, "head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    "gpt2": {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_inner": 48, "n_positions": POSITIONS},
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
    },
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "dropout": 0.0,
    },
}

MakeTiny = Callable[..., PreTrainedModel]


def build_tiny(model_type: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A 6-layer float32 model in eval mode whose layers all change their input visibly."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **{**COMMON, **TINY[model_type], **overrides}), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the usual 0.02 leaves the residual stream almost as it was
                parameter.mul_(5)
    return model.eval()


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
