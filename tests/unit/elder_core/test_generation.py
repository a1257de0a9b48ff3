from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import normalizers

from elder_core.errors import PromptEmpty
from elder_core.evaluation.generation import (
    PROMPT_WORDS,
    _shortened,
    check_prompts,
    continuations,
    continue_text,
    prompts_from,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def as_windows(tokenizer: PreTrainedTokenizerFast, *texts: str) -> torch.Tensor:
    length = min(len(tokenizer(text)["input_ids"]) for text in texts)
    return torch.tensor([tokenizer(text)["input_ids"][:length] for text in texts])


def test_agrees_with_generate(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = torch.tensor([tiny_tokenizer("abc")["input_ids"]])
    written = tiny_llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    expected = tiny_tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)

    assert continue_text(tiny_llama, tiny_tokenizer, "abc", 20) == expected


@pytest.mark.parametrize(
    ("ids", "leading", "kept"),
    [([1, 2, 3], None, [1, 2, 3]), ([1, 2, 3, 4], None, [2, 3, 4]), ([9, 1, 2, 3], 9, [9, 2, 3]), ([9, 1], 9, [9, 1])],
)
def test_a_shortened_prompt_begins_as_texts_do(ids: list[int], leading: int | None, kept: list[int]) -> None:
    assert _shortened(ids, 3, leading) == kept


def test_stops_at_the_end_of_the_text(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    first = tiny_tokenizer("a")["input_ids"]
    with torch.inference_mode():
        likeliest = int(tiny_llama(input_ids=torch.tensor([first])).logits[0, -1].argmax())
    tiny_llama.generation_config.eos_token_id = [likeliest, 5]

    assert continue_text(tiny_llama, tiny_tokenizer, "a") == ""


def test_long_prompts_lose_their_beginning(
    make_tiny: Callable[..., PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_tiny("gpt2", n_positions=16, max_position_embeddings=16)  # learnt positions: one too many is an error

    whole = continue_text(model, tiny_tokenizer, "x" * 50 + "12345678")

    assert whole == continue_text(model, tiny_tokenizer, "12345678")


def test_each_prompt_is_continued(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    shares: list[float] = []

    found = continuations(tiny_llama, tiny_tokenizer, ("one", "two"), tick=shares.append)

    assert found == tuple(continue_text(tiny_llama, tiny_tokenizer, prompt) for prompt in ("one", "two"))
    assert shares == [0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lf of it. The next sentence is here and goes on.", "The next sentence is here and goes on."),
        ("lf line\nA heading\nand then some more text", "A heading and then some more text"),
        ("no end in the first half at all. None", "no end in the first half at all. None"),
        ("word " * 100, " ".join(["word"] * PROMPT_WORDS)),
    ],
)
def test_prompts_start_with_a_sentence(tiny_tokenizer: PreTrainedTokenizerFast, text: str, expected: str) -> None:
    assert prompts_from(as_windows(tiny_tokenizer, text), tiny_tokenizer) == (expected,)


def test_prompts_are_spread_over_the_text(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    windows = as_windows(tiny_tokenizer, *(f"text {index}" for index in range(9)))

    assert prompts_from(windows, tiny_tokenizer) == ("text 0", "text 3", "text 6")
    assert prompts_from(as_windows(tiny_tokenizer, "    "), tiny_tokenizer) == ()


@pytest.fixture
def stripping(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that makes no token of white space, as some do."""
    made = copy.deepcopy(tiny_tokenizer)
    made.backend_tokenizer.normalizer = normalizers.Strip()
    assert made("  ")["input_ids"] == []
    return made


def test_a_prompt_without_a_token_is_refused(stripping: PreTrainedTokenizerFast) -> None:
    check_prompts(None, stripping)
    check_prompts(("a", " b "), stripping)
    with pytest.raises(PromptEmpty, match="'  ' gives no token") as caught:
        check_prompts(("a", "  "), stripping)
    assert caught.value.loc == ("evaluation", "prompts", 1)


def test_a_prompt_without_a_token_is_continued_from_the_start(
    tiny_llama: PreTrainedModel, stripping: PreTrainedTokenizerFast
) -> None:
    stripping.bos_token = "x"
    written = continue_text(tiny_llama, stripping, "  ", 4)
    assert written == continue_text(tiny_llama, stripping, "x", 4) != ""
    stripping.bos_token = stripping.eos_token = None
    assert continue_text(tiny_llama, stripping, "  ", 4) == ""
