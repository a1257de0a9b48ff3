"""How well a model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from elder_core.errors import NonFiniteLoss
from elder_core.journal import Entry
from elder_core.monitor import Monitor, Page

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_BYTES = 256 * 2**20  # of one batch, in float32
ROWS_BYTES = 64 * 2**20  # of the rows that are widened to float32 at a time
MOST_SEQUENCES = 16
MOST_NATS = 700  # e to the power of a little more is no float any more


@dataclass(frozen=True)
class Quality:
    """`perplexity` and `bits_per_byte` of a text; `tokens` is the number of predictions they are a mean of."""

    perplexity: float
    bits_per_byte: float
    tokens: int


def quality(
    model: PreTrainedModel,
    windows: torch.Tensor,
    bytes_per_token: float,
    *,
    batch_size: int | None = None,
    tick: Callable[[float], None] = lambda _: None,
    page: Page | None = None,
) -> Quality:
    """Measure `model` on `windows` `[n, seq]`, token ids of any integer type on any device.

    With p the model's probability of a token given the tokens before it in the same window, and the mean taken
    over every token but the first of each window:

        nats          = mean of −ln p
        perplexity    = exp(nats)
        bits per byte = nats / ln 2 / bytes_per_token

    `bytes_per_token` is the length of the text in UTF-8 bytes over its number of tokens. `batch_size` is in
    windows; None fits the logits into 256 MiB. `tick` gets the share that is done, after every batch, and may
    raise to stop; `page` keeps what was added up by then.

    Raises:
        NonFiniteLoss: the model's predictions are not numbers.
    """
    count, length = windows.shape
    size = batch_size or _batch_size(length, model.config.get_text_config().vocab_size)
    page = page or Monitor().page("nats")
    first, nats = (0, 0.0) if page.recalled is None else (page.recalled.facts["windows"], page.recalled.facts["nats"])
    for start in range(first, count, size):
        nats += _batch_nats(model, windows[start : start + size])
        page.offer(partial(Entry, {"windows": start + size, "nats": nats}))
        tick(min(1.0, (start + size) / count))
    page.keep(Entry({"windows": count, "nats": nats}))
    tokens = count * (length - 1)
    mean = nats / tokens
    if not mean < MOST_NATS:
        raise NonFiniteLoss(f"The model's mean loss on the evaluation text is {mean:g}; its weights are not usable.")
    return Quality(math.exp(mean), mean / math.log(2) / bytes_per_token, tokens)


def summed_nats(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Σ −ln softmax(logits)[target], of logits `[rows, vocabulary]` and targets `[rows]`, added in float64."""
    rows = max(1, ROWS_BYTES // (4 * logits.shape[-1]))
    parts = [
        functional.cross_entropy(some.float(), wanted, reduction="none").double().sum()
        for some, wanted in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
    ]
    return float(torch.stack(parts).sum())


def _batch_size(length: int, vocabulary: int) -> int:
    return max(1, min(MOST_SEQUENCES, LOGITS_BYTES // (4 * length * vocabulary)))


@torch.inference_mode()
def _batch_nats(model: PreTrainedModel, batch: torch.Tensor) -> float:
    ids = batch.to(model.device, torch.long)
    logits = model(input_ids=ids, use_cache=False).logits  # [batch, seq, vocabulary]
    return summed_nats(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
