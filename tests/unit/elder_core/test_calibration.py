"""From documents to windows and batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from elder_core.calibration.batches import batch_at, epochs_needed
from elder_core.calibration.windows import (
    calibration_text,
    evaluation_text,
    largest_id,
    leading_token,
    token_stream,
    window_length,
)
from elder_core.errors import SequenceTooLong, TextEmpty, TextTooShort

END = 0


def test_every_document_is_closed_by_the_end_of_text(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    stream = token_stream(["ab", "", "c"], tiny_tokenizer)
    a, b, c = (tiny_tokenizer(letter)["input_ids"][0] for letter in "abc")
    assert stream.tolist() == [a, b, END, c, END]
    assert stream.dtype == torch.int64


@pytest.mark.parametrize(
    ("special", "expected"), [({"bos_token": "<|endoftext|>"}, [END, -1, -1, END, -1]), ({}, [-1, -1, -1])]
)
def test_without_an_end_of_text_documents_begin_or_touch(
    tiny_tokenizer: PreTrainedTokenizerFast, special: dict[str, str], expected: list[int]
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer, **special)
    stream = token_stream(["ab", "c"], tokenizer)
    assert [token if token == END else -1 for token in stream.tolist()] == expected


def test_text_without_a_token_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TextEmpty) as caught:
        token_stream(["", ""], tiny_tokenizer, field="evaluation")
    assert caught.value.loc == ("evaluation", "source")


def learnt(**given: int) -> torch.Tensor:
    return calibration_text(torch.arange(103), 10, **given).learning


def test_calibration_windows_are_whole_shuffled_and_few() -> None:
    windows = learnt(seed=1)
    assert windows.shape == (10, 10)
    assert sorted(windows[:, 0].tolist()) == list(range(0, 100, 10))
    assert windows[:, 0].tolist() != list(range(0, 100, 10))
    assert torch.equal(learnt(samples=3, seed=1), windows[:3])
    assert torch.equal(learnt(samples=99, seed=1), windows)
    assert not torch.equal(learnt(seed=2), windows)


@pytest.mark.parametrize(
    ("windows", "samples", "keep_apart", "expected"),
    [
        (10, None, False, (10, 0)),
        (10, 7, False, (7, 3)),
        (100, 7, False, (7, 32)),
        (10, None, True, (9, 1)),
        (10, 10, True, (9, 1)),
        (10, 9, True, (9, 1)),
        (10, 4, True, (4, 6)),
        (64, None, True, (60, 4)),
        (1000, None, True, (968, 32)),
        (2, None, True, (1, 1)),
    ],
)
def test_windows_kept_apart_are_few_and_never_learnt_from(
    windows: int, samples: int | None, keep_apart: bool, expected: tuple[int, int]
) -> None:
    found = calibration_text(torch.arange(10 * windows), 10, samples=samples, keep_apart=keep_apart)
    assert (len(found.learning), len(found.apart)) == expected
    assert found.apart.shape[1] == 10
    assert not set(found.learning[:, 0].tolist()) & set(found.apart[:, 0].tolist())


@pytest.mark.parametrize(
    ("tokens", "keep_apart", "message"),
    [(9, False, r"has 9 tokens, but one sequence needs 10"), (19, True, r"has 19 tokens.*a target needs two")],
)
def test_too_short_a_text_says_how_much_is_missing(tokens: int, keep_apart: bool, message: str) -> None:
    with pytest.raises(TextTooShort, match=message):
        calibration_text(torch.arange(tokens), 10, keep_apart=keep_apart)


def test_evaluation_text_is_in_order_with_its_bytes_per_token(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text = evaluation_text(["abcdé", "fg"], tiny_tokenizer, 4)
    ids = tiny_tokenizer("abcdé")["input_ids"] + [END] + tiny_tokenizer("fg")["input_ids"] + [END]
    assert text.windows.flatten().tolist() == ids[:8]
    assert text.bytes_per_token == 8 / 10  # é is two bytes and two tokens
    assert len(evaluation_text(["abcdé", "fg"], tiny_tokenizer, 4, samples=1).windows) == 1


def test_every_window_begins_as_every_text_does(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    beginning = "Ā"  # of this one, a byte that UTF-8 has no use for
    ids = {beginning: backend.token_to_id(beginning), "<|endoftext|>": END}
    backend.post_processor = processors.TemplateProcessing(
        single=f"{beginning} $A", special_tokens=[(beginning, ids[beginning])]
    )
    begins = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=beginning, eos_token="<|endoftext|>")
    assert leading_token(begins) == ids[beginning]
    assert leading_token(tiny_tokenizer) is None

    plain, text = evaluation_text(["abcdé", "fg"], tiny_tokenizer, 3), evaluation_text(["abcdé", "fg"], begins, 4)
    assert torch.equal(text.windows[:, 1:], plain.windows)
    assert text.windows[:, 0].tolist() == [ids[beginning]] * 3
    assert text.bytes_per_token == plain.bytes_per_token, "what is predicted is the text"

    learning = calibration_text(torch.arange(100), 10, leading=7).learning
    assert learning.shape == (11, 10)
    assert learning[:, 0].tolist() == [7] * 11
    with pytest.raises(TextTooShort, match="has 8 tokens, but one sequence needs 9"):
        calibration_text(torch.arange(8), 10, leading=7)
    assert calibration_text(torch.arange(7, 17), 10, leading=7).learning.tolist() == [list(range(7, 17))]  # once

    assert ids[beginning] > 100
    assert largest_id(begins, [torch.tensor([1, 2])]) == ids[beginning]
    assert largest_id(tiny_tokenizer, [torch.tensor([1, 2])]) == 2
    assert largest_id(tiny_tokenizer, [torch.tensor([1, 2]), torch.tensor([5])], [[1], [9, 3]]) == 9


@pytest.mark.parametrize(
    ("requested", "limit", "expected"),
    [(None, 64, 64), (None, 9_000, 2_048), (None, None, 2_048), (9_000, None, 9_000)],
)
def test_window_length(requested: int | None, limit: int | None, expected: int) -> None:
    assert window_length(requested, limit) == expected


def test_a_window_above_the_models_limit_is_refused() -> None:
    with pytest.raises(SequenceTooLong, match=r"65 tokens.*limit of 64") as caught:
        window_length(65, 64)
    assert caught.value.loc == ("calibration", "sequence_length")


@given(
    samples=st.integers(1, 9), batch_size=st.integers(1, 20), steps=st.integers(1, 6), seed=st.integers(0, 2**31 - 1)
)
def test_batches_go_through_every_sequence_before_any_comes_again(
    samples: int, batch_size: int, steps: int, seed: int
) -> None:
    windows = torch.arange(samples).unsqueeze(1)
    seen = torch.cat([batch_at(windows, step, batch_size, seed) for step in range(steps)]).flatten()
    assert len(seen) == steps * batch_size
    for epoch in range(0, len(seen) - samples + 1, samples):
        assert sorted(seen[epoch : epoch + samples].tolist()) == list(range(samples))


def test_epochs_differ_in_order_and_depend_on_the_seed() -> None:
    windows = torch.arange(100).unsqueeze(1)
    first, second = batch_at(windows, 0, 100, 0), batch_at(windows, 1, 100, 0)
    assert not torch.equal(first, second)
    assert not torch.equal(first, batch_at(windows, 0, 100, 1))
    assert torch.equal(first, batch_at(windows, 0, 100, 0))


def test_epochs_needed() -> None:
    assert epochs_needed(10, steps=5, batch_size=4) == 2
