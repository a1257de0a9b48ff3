"""From documents to windows of tokens.

All documents become one stream of tokens, each followed by the end-of-text token, and the stream is cut into windows
without overlap. A window may hold the end of one document and the beginning of the next, as in training.

Where the tokenizer puts a beginning-of-text token before whatever it is given, every window begins with one too: the
model has seen no sequence without, and some (Gemma's) predict next to nothing then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from elder_core.errors import SequenceTooLong, TextEmpty, TextTooShort
from elder_core.inspection import default_sequence_length

APART_SHARE = 1 / 16
MOST_APART = 32


@dataclass(frozen=True)
class CalibrationText:
    """Windows to learn from `[samples, length]`, and others that nothing is learnt from `[apart, length]`, or none.

    `available` is how many the text has to learn from, of which `samples` may take fewer.
    """

    learning: Tensor
    apart: Tensor
    available: int


@dataclass(frozen=True)
class EvaluationText:
    """Windows `[sequences, sequence_length]` in the order of the text, and UTF-8 bytes a token of the whole text."""

    windows: Tensor
    bytes_per_token: float


def window_length(requested: int | None, model_limit: int | None, *, field: str = "calibration") -> int:
    """Tokens a window: what was asked for, or else the model's limit, at most 2048.

    `field` is the part of the spec that asked, for the error.

    Raises:
        SequenceTooLong: more than the model was built for.
    """
    if requested is None:
        return default_sequence_length(model_limit)
    if model_limit is not None and requested > model_limit:
        raise SequenceTooLong(
            f"A sequence length of {requested:,} tokens is above the model's limit of {model_limit:,}; "
            f"give at most {model_limit:,}.",
            loc=(field, "sequence_length"),
        )
    return requested


def token_stream(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, field: str = "calibration") -> Tensor:
    """Token ids `[tokens]` of all documents, each closed by the end-of-text token.

    A tokenizer without one has its beginning-of-text token put before each document instead, or nothing if it has
    neither.

    Raises:
        TextEmpty: no document holds a token.
    """
    before, after = _separators(tokenizer)
    ids: list[int] = []
    for document in documents:
        tokens = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if tokens:
            ids += [*before, *tokens, *after]
    if not ids:
        raise TextEmpty("The text holds no token; give one with some text in it.", loc=(field, "source"))
    return torch.tensor(ids, dtype=torch.int64)


def leading_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The beginning-of-text token, if the tokenizer puts it before every text by itself."""
    ids = tokenizer("a")["input_ids"]
    return ids[0] if len(ids) > 1 and ids[0] == tokenizer.bos_token_id else None


def largest_id(tokenizer: PreTrainedTokenizerBase, streams: Iterable[Tensor], prompts: Iterable[list[int]] = ()) -> int:
    """The largest token id in windows of `streams` `[tokens]` and in `prompts`, what they begin with included."""
    always: list[int] = tokenizer("")["input_ids"]
    return max([*always, *(int(stream.max()) for stream in streams), *map(max, prompts)])


def calibration_text(
    stream: Tensor,
    length: int,
    *,
    leading: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    keep_apart: bool = False,
) -> CalibrationText:
    """Windows of `stream` `[tokens]` in an order drawn from `seed`, at most `samples` to learn from; None means all.

    Each begins with the token `leading`, if any, which counts in its `length`.

    With `keep_apart` one window in 16, at least 1 and at most 32, is not learnt from; without, only what is above
    `samples` is not.

    Raises:
        TextTooShort: the stream is shorter than one window, or than two where one is kept apart.
    """
    windows = _cut(stream, length, leading, field="calibration")
    if keep_apart and len(windows) == 1:
        raise TextTooShort(
            f"The calibration text has {len(stream):,} tokens, which is one sequence of {length:,}; a target needs "
            "two, since one is kept apart from learning. Give more text or a shorter sequence length.",
            loc=("calibration", "source"),
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    kept = min(MOST_APART, max(1, int(APART_SHARE * len(windows)))) if keep_apart else 0
    available = len(order) - kept
    learning = order[:available][:samples]
    apart = order[len(learning) :][-MOST_APART:] if len(learning) < len(order) else order[:0]
    return CalibrationText(windows[learning], windows[apart], available)


def evaluation_text(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, *, samples: int | None = None
) -> EvaluationText:
    """Tokenise `documents` and cut them, as `evaluation_windows` does.

    Raises:
        TextEmpty, TextTooShort: there is no text, or less than one window of it.
    """
    stream = token_stream(documents, tokenizer, field="evaluation")
    return evaluation_windows(documents, stream, length, leading=leading_token(tokenizer), samples=samples)


def evaluation_windows(
    documents: Sequence[str],
    stream: Tensor,
    length: int,
    *,
    leading: int | None = None,
    samples: int | None = None,
) -> EvaluationText:
    """Windows of `stream` `[tokens]`, the tokens of `documents`: at most `samples`, in order and spread evenly.

    None for `samples` means all windows. Each begins with the token `leading`, if any, which counts in its `length`.

    Raises:
        TextTooShort: the stream is shorter than one window.
    """
    windows = _cut(stream, length, leading, field="evaluation")
    text_bytes = sum(len(document.encode()) for document in documents)
    count = len(windows) if samples is None else min(samples, len(windows))
    spread = torch.arange(count) * len(windows) // count
    return EvaluationText(windows[spread], text_bytes / len(stream))


def _separators(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    if tokenizer.eos_token_id is not None:
        return [], [tokenizer.eos_token_id]
    return ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]), []


def _cut(stream: Tensor, length: int, leading: int | None, *, field: str) -> Tensor:
    """All whole windows `[windows, length]` of `stream` `[tokens]`, each after the token `leading`, if any."""
    room = length - (leading is not None)
    if leading is not None and stream[0] == leading:  # where it stands before every document as well
        stream = stream[1:]
    count = len(stream) // room
    if count == 0:
        raise TextTooShort(
            f"The {field} text has {len(stream):,} tokens, but one sequence needs {room:,}; give more text"
            f"{' or a shorter sequence length' if field == 'calibration' else ''}.",
            loc=(field, "source"),
        )
    windows = stream[: count * room].view(count, room)
    return windows if leading is None else functional.pad(windows, (1, 0), value=leading)
