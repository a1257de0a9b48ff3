"""Random layers removed from random models of every family: reloaded, they say what the bypassed model says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from transformers import PreTrainedTokenizerFast

from elder_core import checkpoints
from elder_core.architectures.table import ARCHITECTURES, MULTIMODAL
from elder_core.errors import UnsupportedArchitecture
from elder_core.spec import OutputSpec, Precision
from elder_core.surgery import bypassed, decoder_layers, remove_layers
from tests.unit.elder_core.acceptance import FAMILIES, named, provenance_of
from tests.unit.elder_core.families import REPRESENTATIVE, VOCABULARY, each
from tests.unit.elder_core.fresh_process import FreshProcess, fresh_process
from tests.unit.elder_core.random_models import Removal, removals

SAME = 1e-5  # of logits, in float32
CASES_A_FAMILY = 4  # the first is the simplest there is, the others are drawn
ALWAYS = (*REPRESENTATIVE, "gemma3 gemma3_text", "llava llama", "qwen3_5 qwen3_5_text")


@pytest.fixture(scope="module")
def fresh() -> Iterator[FreshProcess]:
    with fresh_process() as process:
        yield process


def difference(family: str, removal: Removal, tokenizer: PreTrainedTokenizerFast, fresh: FreshProcess) -> float | None:
    """The largest between logits of the saved and of the bypassed model; None where the config cannot say the rest."""
    model = named(family).build(seed=removal.seed, **removal.settings)
    inputs = named(family).given()  # with an image, if it sees
    if not named(family).sees:
        inputs["input_ids"] = torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(removal.seed))
    with torch.no_grad(), bypassed(model, removal.removed):
        expected = model(**inputs, use_cache=False).logits
    with tempfile.TemporaryDirectory() as folder:
        source, pruned = Path(folder, "source"), Path(folder, "pruned")
        model.save_pretrained(source)
        tokenizer.save_pretrained(source)
        layers = len(decoder_layers(model))
        try:
            remove_layers(model, removal.removed)
        except UnsupportedArchitecture:
            return None
        checkpoints.save(
            model,
            pruned,
            source=source,
            provenance=provenance_of(removal.removed, layers=layers),
            dtype=Precision.SAME,
            max_shard_bytes=OutputSpec().max_shard_bytes,
        )
        found = fresh.load(pruned, inputs)
        assert found.complaints == []
        return max((one - expected).abs().max().item() for one in found.logits)


@pytest.mark.parametrize("family", each(FAMILIES, ALWAYS))
def test_a_reloaded_model_is_the_bypassed_one(
    family: str, tiny_tokenizer: PreTrainedTokenizerFast, fresh: FreshProcess
) -> None:
    cases = 0

    @settings(
        max_examples=CASES_A_FAMILY,
        deadline=None,
        database=None,
        derandomize=family in ALWAYS,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(removals(family))
    def check(removal: Removal) -> None:
        nonlocal cases
        if (found := difference(family, removal, tiny_tokenizer, fresh)) is None:
            reject()  # another is drawn in its place
        assert found <= SAME
        cases += 1

    check()
    assert cases >= CASES_A_FAMILY


def test_enough_are_drawn() -> None:
    assert CASES_A_FAMILY * len(ARCHITECTURES) >= 300
    assert {name.split()[0] for name in FAMILIES} == {*ARCHITECTURES, *MULTIMODAL}
    assert {*ALWAYS} <= {*FAMILIES}
