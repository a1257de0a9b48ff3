"""Prompts continued by a model, for people to read beside those of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from elder_core.calibration.windows import leading_token
from elder_core.errors import PromptEmpty
from elder_core.evaluation import decoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = 3
PROMPT_WORDS = 24
NEW_TOKENS = 48


def check_prompts(prompts: Sequence[str] | None, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of prompts; those that give the model nothing to go on from are refused, before anything is trained.

    Raises:
        PromptEmpty: the tokenizer makes no token of one, such as white space that it strips.
    """
    found = []
    for index, prompt in enumerate(prompts or ()):
        found.append(tokenizer(prompt)["input_ids"])
        if not found[-1]:
            raise PromptEmpty(
                f"The prompt {prompt[:40]!r} gives no token with this model's tokenizer; write some text in it.",
                loc=("evaluation", "prompts", index),
            )
    return found


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    tick: Callable[[float], None] = lambda _: None,
) -> tuple[str, ...]:
    """What `model` writes after each of `prompts`. `tick` gets the share that is done and may raise to stop."""
    texts = []
    for index, prompt in enumerate(prompts, start=1):
        texts.append(continue_text(model, tokenizer, prompt))
        tick(index / len(prompts))
    return tuple(texts)


def prompts_from(windows: torch.Tensor, tokenizer: PreTrainedTokenizerBase, count: int = PROMPTS) -> tuple[str, ...]:
    """Up to `count` prompts, each the start of a sentence, from `windows` `[n, seq]` spread over the text."""
    count = min(count, windows.shape[0])
    rows = [index * windows.shape[0] // count for index in range(count)]
    openings = [_opening(tokenizer.decode(windows[row], skip_special_tokens=True)) for row in rows]
    return tuple(opening for opening in openings if opening)


def continue_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int = NEW_TOKENS
) -> str:
    """What `model` writes after `prompt`, greedily, until it ends the text or `new_tokens` are written.

    A prompt that leaves too little room below the model's limit loses its beginning; one without a token is continued
    as the beginning of a text.
    """
    start = tokenizer(prompt)["input_ids"] or _start_of_text(tokenizer)
    if not start:
        return ""
    limit = decoding.max_positions(model)
    if limit is not None:
        new_tokens = min(new_tokens, limit // 2)
        start = _shortened(start, limit - new_tokens, leading_token(tokenizer))
    ids = torch.tensor([start], dtype=torch.int64, device=model.device)
    written: list[int] = []
    cache = None
    while len(written) < new_tokens:
        ids, cache = decoding.step(model, ids, cache)
        if int(ids) in _end_tokens(model, tokenizer):
            break
        written.append(int(ids))
    return str(tokenizer.decode(written, skip_special_tokens=True))


def _shortened(ids: list[int], limit: int, leading: int | None) -> list[int]:
    """The end of `ids`, `limit` of them at most, after the token `leading` if every text begins with that."""
    if len(ids) <= limit:
        return ids
    kept = [] if leading is None else [leading]
    return [*kept, *ids[len(ids) - limit + len(kept) :]]


def _opening(text: str) -> str:
    """The first words of `text` after its first line or sentence end, since a window starts anywhere."""
    half = text[: len(text) // 2]
    ends = [half.find(mark) + len(mark) for mark in ("\n", ". ") if mark in half]
    start = min(ends, default=0)
    return " ".join(text[start:].split()[:PROMPT_WORDS])


def _start_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What stands between texts in training, if anything does."""
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [token for token in known if token is not None][:1]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = set(named) if isinstance(named, list) else {named}
    return {token for token in ends | {tokenizer.eos_token_id} if token is not None}
