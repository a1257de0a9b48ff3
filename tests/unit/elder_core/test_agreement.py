"""Config against tensors, by names and shapes: the same for a model that is loaded and for one that is cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from elder_core import checkpoints
from elder_core.agreement import check_agreement
from elder_core.errors import ConfigMismatch, InvalidCheckpoint
from elder_core.inspection import inspect_checkpoint
from tests.unit.elder_core.conftest import MakeTiny
from tests.unit.elder_core.multimodal import build_multimodal
from tests.unit.elder_core.test_cutting import cut, resolved, source_of

Tensors = dict[str, torch.Tensor]
Use = Callable[[Path, Path], object]

USES: list[Use] = [
    lambda source, _: checkpoints.load(resolved(source), torch.device("cpu")),
    lambda source, out: cut(resolved(source), out),
]


def damaged(folder: Path, change: Callable[[Tensors], object], **settings: Any) -> Path:
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))


@pytest.mark.parametrize("use", USES, ids=["load", "cut"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.pop("model.norm.weight"), r"1 missing keys, such as model\.norm\.weight"),
        (lambda held: held.update({"model.norm.weight": torch.zeros(33)}), r"1 mismatched keys.*model\.norm\.weight"),
        (lambda held: held.update({"model.extra.weight": torch.zeros(3)}), r"1 unexpected keys.*model\.extra\.weight"),
    ],
    ids=["missing", "shape", "unexpected"],
)
def test_a_tensor_that_does_not_fit(
    use: Use, change: Callable[[Tensors], object], said: str, folder: Path, tmp_path: Path
) -> None:
    source = damaged(folder, change)
    with pytest.raises(ConfigMismatch, match=said):
        use(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("use", USES, ids=["load", "cut"])
def test_an_expert_that_is_missing(
    use: Use, make_tiny: MakeTiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Files hold experts one by one, models all of a layer in one tensor."""
    source_of(tmp_path / "source", make_tiny("mixtral"), tiny_tokenizer)
    name = "model.layers.2.block_sparse_moe.experts.3.w1.weight"
    with pytest.raises(InvalidCheckpoint):
        use(damaged(tmp_path / "source", lambda held: held.pop(name)), tmp_path / "out")


@pytest.mark.parametrize("use", USES, ids=["load", "cut"])
def test_what_sees_counts_as_well(use: Use, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    source_of(tmp_path / "source", build_multimodal("llava"), tiny_tokenizer)
    source = damaged(tmp_path / "source", lambda held: held.pop("multi_modal_projector.linear_1.bias"))
    with pytest.raises(ConfigMismatch, match=r"1 missing keys.*multi_modal_projector\.linear_1\.bias"):
        use(source, tmp_path / "out")


@pytest.mark.parametrize("use", USES, ids=["load", "cut"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_inner": 2**31, "n_embd": 32}, "mismatched keys"),  # 2 TB
        ({"n_positions": 2**24}, "mismatched keys"),  # beside them a mask of 2⁴⁸ bytes
        ({"n_inner": 2**32, "n_head": 2, "vocab_size": 2**32}, "belong together|cannot be loaded"),
    ],
    ids=["matrices", "masks", "overflow"],
)
def test_absurd_sizes_are_not_allocated(
    use: Use,
    settings: dict[str, int],
    said: str,
    make_tiny: MakeTiny,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("elder_core.inspection._check_shapes", lambda *_: None)  # which would see some of them
    source_of(tmp_path / "source", make_tiny("gpt2"), tiny_tokenizer)
    with pytest.raises(InvalidCheckpoint, match=said):
        use(damaged(tmp_path / "source", lambda held: None, **settings), tmp_path / "out")


@pytest.mark.parametrize("settings", [{"num_attention_heads": 2}, {"num_key_value_heads": 1}, {"head_dim": 4}])
def test_no_weight_is_read_of_a_model_whose_config_tells_of_another(
    settings: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its hash alone all of them would be."""
    damaged(folder, lambda held: None, **settings)
    monkeypatch.setattr(checkpoints, "file_sha256", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(ConfigMismatch, match="mismatched keys"):
        resolved(folder)


def test_sizes_that_no_tensor_can_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elder_core.inspection._check_shapes", lambda *_: None)
    source = damaged(folder, lambda held: None, head_dim=2**32, num_attention_heads=2**32)
    with pytest.raises(InvalidCheckpoint, match="cannot be loaded"):
        check_agreement(inspect_checkpoint(source))


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_how_much_transformers_says_is_as_before(level: int, folder: Path) -> None:
    before = logging.get_verbosity()
    logging.set_verbosity(level)
    try:
        check_agreement(resolved(folder).info)
        assert logging.get_verbosity() == level
    finally:
        logging.set_verbosity(before)
