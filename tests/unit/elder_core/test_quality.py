from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from elder_core.errors import Cancelled, NonFiniteLoss
from elder_core.evaluation import quality as module
from elder_core.evaluation.quality import quality, summed_nats

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Constant(nn.Module):
    """Predicts the same logits everywhere."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=len(logits)))
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def windows(count: int = 5, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 257, (count, length), generator=torch.Generator().manual_seed(1))


def test_against_hand_computed_values() -> None:
    # p = (1/2, 1/4, 1/4); predicted are 0, 1 and 2, 2: mean nats = (1 + 2 + 2 + 2) / 4 · ln 2
    model: Any = Constant([math.log(2), 0.0, 0.0])

    found = quality(model, torch.tensor([[1, 0, 1], [0, 2, 2]]), bytes_per_token=2.0)

    assert found.tokens == 4
    assert found.perplexity == pytest.approx(2**1.75)
    assert found.bits_per_byte == pytest.approx(1.75 / 2)


def test_uniform_predictions_have_the_vocabulary_as_perplexity() -> None:
    model: Any = Constant([0.0] * 7)

    assert quality(model, torch.zeros(3, 9, dtype=torch.int32), 1.0).perplexity == pytest.approx(7)


def test_batch_size_does_not_matter(tiny_llama: PreTrainedModel) -> None:
    one, all_at_once = (quality(tiny_llama, windows(), 1.0, batch_size=size) for size in (1, 5))

    assert one.tokens == all_at_once.tokens == 5 * 11
    assert one.perplexity == pytest.approx(all_at_once.perplexity, rel=1e-5)


def test_agrees_with_the_model_s_own_loss(tiny_llama: PreTrainedModel) -> None:
    with torch.inference_mode():
        loss = tiny_llama(input_ids=windows(), labels=windows()).loss.item()

    assert quality(tiny_llama, windows(), 1.0).perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_large_logits_are_widened_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = torch.randn(10, 257).bfloat16(), torch.arange(10)
    whole = summed_nats(logits, targets)

    monkeypatch.setattr(module, "ROWS_BYTES", 3 * 257 * 4)

    assert summed_nats(logits, targets) == pytest.approx(whole, rel=1e-9)


def test_batches_shrink_with_the_vocabulary() -> None:
    assert module._batch_size(2048, 152_000) == 1
    assert module._batch_size(256, 4096) == module.MOST_SEQUENCES


def test_tells_the_share_done_and_can_be_stopped(tiny_llama: PreTrainedModel) -> None:
    shares: list[float] = []
    quality(tiny_llama, windows(), 1.0, batch_size=2, tick=shares.append)

    def stop(_: float) -> None:
        raise Cancelled

    assert shares == [0.4, 0.8, 1.0]
    with pytest.raises(Cancelled):
        quality(tiny_llama, windows(), 1.0, tick=stop)


@pytest.mark.parametrize(("logits", "mean"), [([math.nan, 0.0], "nan"), ([0.0, 800.0], "is 800;")])
def test_a_model_whose_perplexity_is_no_number_is_refused(logits: list[float], mean: str) -> None:
    model: Any = Constant(logits)

    with pytest.raises(NonFiniteLoss, match=mean):
        quality(model, torch.zeros(1, 4, dtype=torch.long), 1.0)
