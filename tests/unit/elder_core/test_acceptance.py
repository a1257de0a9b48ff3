"""Every supported architecture without some layers, as a fresh process finds it."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tests.unit.elder_core.acceptance import PAGE, TRIED, Result, page, run, sets_of
from tests.unit.elder_core.families import LAYERS

SETS_A_FAMILY = 2  # make test-architectures tries all, and all families of text parts


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> list[Result]:
    sets = {family: sets_of(family)[0][:SETS_A_FAMILY] for family in TRIED}
    return run(sets, tmp_path_factory.mktemp("acceptance"), tiny_tokenizer)


@pytest.mark.parametrize("family", TRIED)
def test_every_architecture_is_whole_without_some_layers(family: str, results: list[Result]) -> None:
    of_family = [result for result in results if result.family == family]
    assert len(of_family) == SETS_A_FAMILY
    assert {layer for result in of_family for layer in result.removed} >= {0, LAYERS - 1}
    assert {result.removed: dict(result.problems) for result in of_family if result.problems} == {}


def test_the_page_of_architectures_is_current() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: make test-architectures"
