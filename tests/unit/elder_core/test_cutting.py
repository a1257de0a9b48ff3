"""Layers cut out of a checkpoint's files: to the byte what loading, removing and saving gives, in little memory."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from elder_core import checkpoints, cutting, sizes
from elder_core.architectures.table import ARCHITECTURES
from elder_core.checkpoints import Provenance, Resolved, resolve
from elder_core.errors import (
    Cancelled,
    DuplicateLayers,
    InvalidCheckpoint,
    LayersOutOfRange,
    NoLayerLeft,
    NonFiniteWeights,
    OutputExists,
    UnsupportedArchitecture,
)
from elder_core.inspection import LEFT_OUT, Sources
from elder_core.sizes import narrowing
from elder_core.spec import ModelRef, OutputSpec, Precision
from elder_core.surgery import bypassed, remove_layers
from elder_core.weight_files import checkpoint_bytes
from tests.unit.elder_core.acceptance import provenance_of, sets_of
from tests.unit.elder_core.conftest import LAYERS, MakeTiny
from tests.unit.elder_core.families import REPRESENTATIVE

REMOVED = (1, 4)
PROMPT = torch.arange(24)[None] * 7 % 257
INDEX = "model.safetensors.index.json"


def source_of(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, shard_bytes: int = 10**9
) -> Resolved:
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    tokenizer.save_pretrained(folder)
    return resolved(folder)


def resolved(folder: Path) -> Resolved:
    return resolve(ModelRef(id=str(folder)), Sources(allow_paths=True))


def provenance() -> Provenance:
    return provenance_of(REMOVED)


def cut(source: Resolved, out: Path, removed: tuple[int, ...] = REMOVED, **output: Any) -> Path:
    cutting.cut(source, removed, out, provenance=provenance(), output=OutputSpec.model_construct(**output))
    return out


def loaded_and_saved(source: Resolved, out: Path, removed: tuple[int, ...] = REMOVED, **output: Any) -> Path:
    """What the other way gives: load the model, remove the layers, save it."""
    loaded = checkpoints.load(source, torch.device("cpu"))
    remove_layers(loaded.model, removed)
    wanted = OutputSpec.model_construct(**output)
    checkpoints.save(
        loaded.model,
        out,
        source=source.path,
        provenance=provenance(),
        dtype=wanted.dtype,
        max_shard_bytes=wanted.max_shard_bytes,
    )
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def raw(folder: Path) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    """Every tensor, to the byte."""
    return {
        name: (tensor.dtype, tensor.shape, tensor.flatten().view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors(folder).items()
    }


def edit_weights(folder: Path, change: Any) -> Resolved:
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return resolved(folder)


@pytest.fixture
def source(tiny_checkpoint: Path, tmp_path: Path) -> Resolved:
    """A copy that a test may damage."""
    return resolved(Path(shutil.copytree(tiny_checkpoint, tmp_path / "source")))


# The same as the other way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "tied"),
    [*((name, None) for name in ARCHITECTURES), *((name, tied) for name in REPRESENTATIVE for tied in (True, False))],
)
def test_every_file_is_that_of_loading_and_saving(
    make_tiny: MakeTiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, model_type: str, tied: bool | None
) -> None:
    given = {} if tied is None else {"tie_word_embeddings": tied}
    model = make_tiny(model_type, **given).to(torch.bfloat16)
    source, removed = source_of(tmp_path / "source", model, tiny_tokenizer), sets_of(model_type)[0][0]
    found = files(cut(source, tmp_path / "cut", removed))
    assert found == files(loaded_and_saved(source, tmp_path / "saved", removed))
    assert {"config.json", "model.safetensors", "generation_config.json", "chat_template.jinja"} < set(found)
    checkpoints.verify(tmp_path / "cut")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", REPRESENTATIVE)
def test_shards_hold_the_same_tensors(
    make_tiny: MakeTiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, model_type: str, tied: bool
) -> None:
    model = make_tiny(model_type, tie_word_embeddings=tied)
    source, removed = (
        source_of(tmp_path / "source", model, tiny_tokenizer, shard_bytes=30_000),
        sets_of(model_type)[0][0],
    )
    assert len(list(source.path.glob("model-*.safetensors"))) > 3
    out = cut(source, tmp_path / "cut", removed, max_shard_bytes=40_000)
    saved = loaded_and_saved(source, tmp_path / "saved", removed, max_shard_bytes=40_000)
    assert raw(out) == raw(saved)
    assert (out / "config.json").read_bytes() == (saved / "config.json").read_bytes()
    mine, theirs = (json.loads((folder / INDEX).read_text()) for folder in (out, saved))
    assert mine["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    buffers = sum(buffer.numel() for name, buffer in model.named_buffers() if name in tensors(source.path))
    counts = [index["metadata"]["total_parameters"] for index in (mine, theirs)]
    assert 0 <= counts[0] - counts[1] <= buffers  # only a model knows which tensors are no parameters
    assert set(mine["weight_map"]) == set(theirs["weight_map"]) == set(raw(out))
    assert all(name in load_file(out / file) for name, file in mine["weight_map"].items())
    assert all(file.stat().st_size < 50_000 for file in out.glob("model-*.safetensors"))
    checkpoints.verify(out)
    assert cut(source, tmp_path / "single", removed).joinpath("model.safetensors").is_file()
    assert raw(tmp_path / "single") == raw(out)


@pytest.mark.parametrize("model_type", REPRESENTATIVE)
def test_plain_transformers_load_it_and_compute_what_the_bypassed_model_does(
    make_tiny: MakeTiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, model_type: str
) -> None:
    model = make_tiny(model_type)
    source, removed = source_of(tmp_path / "source", model, tiny_tokenizer), sets_of(model_type)[0][0]
    out = cut(source, tmp_path / "cut", removed)
    shorter, loading = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert [key for kind in loading.values() for key in kind] == []
    with torch.no_grad(), bypassed(model, removed):
        expected = model(PROMPT).logits
    with torch.no_grad():
        torch.testing.assert_close(shorter(PROMPT).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("as_published", [True, False])
def test_a_stack_that_files_call_otherwise_keeps_its_name(
    make_tiny: MakeTiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, as_published: bool
) -> None:
    """Nemotron-H's, which are of the backbone where its authors wrote them."""
    make_tiny("nemotron_h").save_pretrained(tmp_path / "source", save_original_format=as_published)
    tiny_tokenizer.save_pretrained(tmp_path / "source")
    source = resolved(tmp_path / "source")
    found = files(cut(source, tmp_path / "cut", (0, 5)))
    assert found == files(loaded_and_saved(source, tmp_path / "saved", (0, 5)))
    stack = "backbone" if as_published else "model"
    layers = {name.split(".layers.")[0] for name in raw(tmp_path / "cut") if ".layers." in name}
    assert layers == {stack}
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert written["layers_block_type"] == ["moe", "full_attention", "mlp", "linear_attention"]
    assert (written["num_hidden_layers"], written["hybrid_override_pattern"]) == (4, "E*-M"), "its authors' code"


def test_what_old_checkpoints_hold_is_left_out(
    make_tiny: MakeTiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """As GPT-2's on the hub: without the prefix of the whole model, with its causal masks, no generation config."""
    source_of(tmp_path / "source", make_tiny("gpt2"), tiny_tokenizer)

    def age(held: dict[str, torch.Tensor]) -> None:
        for name in list(held):
            held[name.removeprefix("transformer.")] = held.pop(name)
        held.update({f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(LAYERS)})
        held.update({f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(LAYERS)})

    source = edit_weights(tmp_path / "source", age)
    (source.path / "generation_config.json").unlink()
    config = json.loads((source.path / "config.json").read_text())
    (source.path / "config.json").write_text(json.dumps(config | {"temperature": 0.5, "do_sample": True}))
    source = resolved(source.path)
    found = files(cut(source, tmp_path / "cut"))
    assert found == files(loaded_and_saved(source, tmp_path / "saved"))
    assert json.loads(found["generation_config.json"])["temperature"] == 0.5


@pytest.mark.parametrize(
    ("family", "added"),
    [
        ("deepseek_v3", "model.layers.6.{}"),
        ("glm4_moe", "model.layers.6.{}"),
        ("qwen3_next", "mtp.layers.0.{}"),
        ("ernie4_5_moe", "model.mtp_block.0.{}"),
        ("mimo_v2_flash", "model.mtp.layers.0.{}"),
    ],
)
def test_layers_that_predict_several_tokens_at_once_are_left_out(
    make_tiny: MakeTiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, family: str, added: str
) -> None:
    """As DeepSeek, GLM, Qwen and others keep them; transformers does not load them."""
    source_of(tmp_path / "source", make_tiny(family), tiny_tokenizer)
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 1}))

    def add(held: dict[str, torch.Tensor]) -> None:
        first = "model.layers.0."
        held.update({added.format(n.removeprefix(first)): held[n] + 1 for n in list(held) if n.startswith(first)})

    source, removed = edit_weights(tmp_path / "source", add), (0, 5)
    assert source.info.predictors
    assert source.info.warnings == (LEFT_OUT,)
    found = files(cut(source, tmp_path / "cut", removed))
    assert found == files(loaded_and_saved(source, tmp_path / "saved", removed))
    assert json.loads(found["config.json"])["num_nextn_predict_layers"] == 0
    shorter = resolved(tmp_path / "cut").info
    assert (shorter.layers, shorter.predictors) == (4, False)
    plain = source_of(tmp_path / "plain", make_tiny(family), tiny_tokenizer)
    assert not plain.info.predictors
    assert plain.info.warnings == ()
    assert raw(cut(plain, tmp_path / "plain-cut", removed)) == raw(tmp_path / "cut")


@pytest.mark.parametrize("difference", [0, 1])
def test_a_head_stored_beside_the_embeddings_goes_if_it_is_the_same(
    source: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: int
) -> None:
    """Only the last number differs, far behind what is compared for a size."""
    monkeypatch.setattr(sizes, "COMPARED_BYTES", 8)

    def add(held: dict[str, torch.Tensor]) -> None:
        held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
        held["lm_head.weight"][-1, -1] += difference

    source = edit_weights(source.path, add)
    out = cut(source, tmp_path / "cut")
    assert ("lm_head.weight" in raw(out)) == bool(difference)
    assert raw(out) == raw(loaded_and_saved(source, tmp_path / "saved"))


@pytest.mark.parametrize("dtype", [Precision.FLOAT32, Precision.FLOAT16, Precision.BFLOAT16])
def test_another_number_type(source: Resolved, tmp_path: Path, dtype: Precision) -> None:
    found = files(cut(source, tmp_path / "cut", dtype=dtype))
    assert found == files(loaded_and_saved(source, tmp_path / "saved", dtype=dtype))
    assert json.loads(found["config.json"])["dtype"] == dtype.value


def test_a_few_tensors_of_another_type_become_as_the_others(source: Resolved, tmp_path: Path) -> None:
    assert not list(narrowing(source.info, OutputSpec()))
    source = edit_weights(source.path, lambda held: held.update({"model.norm.weight": torch.full((32,), 1 / 3)}))
    assert raw(cut(source, tmp_path / "cut")) == raw(loaded_and_saved(source, tmp_path / "saved"))
    (told,) = narrowing(source.info, OutputSpec())
    assert told.startswith("1 of the tensors, such as model.norm.weight, are stored as float32, and are saved as bfl")
    assert not list(narrowing(source.info, OutputSpec(dtype=Precision.FLOAT32)))


# Memory and progress ---------------------------------------------------------------------------------------------


def test_memory_is_a_part_of_one_tensor(
    make_tiny: MakeTiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "PART_BYTES", 1 << 16)
    model = make_tiny("llama", hidden_size=256, intermediate_size=2048, vocab_size=8_000)
    source = source_of(tmp_path / "source", model, tiny_tokenizer)
    largest = max(tensor.nbytes for tensor in model.state_dict().values())
    del model
    cut(source, tmp_path / "first")  # imports and caches
    tracemalloc.start()
    try:
        cut(source, tmp_path / "cut")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert checkpoint_bytes(tmp_path / "cut") > 3 * largest
    assert peak < 2_000_000 < largest / 2


def test_parts_of_any_size_give_the_same(source: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = files(cut(source, tmp_path / "whole", dtype=Precision.FLOAT32))
    monkeypatch.setattr(sizes, "PART_BYTES", 24)
    assert files(cut(source, tmp_path / "parts", dtype=Precision.FLOAT32)) == expected


def test_what_is_compared_with_the_files_takes_no_memory(
    source: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    places: list[set[str]] = []

    def compared(model: PreTrainedModel, *_: object) -> None:
        places.append({parameter.device.type for parameter in model.parameters()})

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    monkeypatch.setattr(PreTrainedModel, "_move_missing_keys_from_meta_to_device", compared)
    cut(resolved(source.path), tmp_path / "cut")
    assert places == [{"meta"}]


def test_every_tensor_is_a_step_and_any_may_be_the_last(source: Resolved, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def step(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        cutting.cut(source, REMOVED, tmp_path / "cut", provenance=provenance(), output=OutputSpec(), step=step)
    total = len(raw(loaded_and_saved(source, tmp_path / "saved")))
    assert seen == [(done, total) for done in range(1, 6)]
    assert not (tmp_path / "cut").exists()
    assert {entry.name for entry in tmp_path.iterdir()} == {"source", "saved"}


# Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("removed", "error"),
    [((6,), LayersOutOfRange), ((-1,), LayersOutOfRange), ((2, 2), DuplicateLayers), (tuple(range(6)), NoLayerLeft)],
)
def test_layers_that_do_not_fit(
    source: Resolved, tmp_path: Path, removed: tuple[int, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        cut(source, tmp_path / "cut", removed)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_an_existing_folder_is_not_touched(source: Resolved, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "mine").touch()
    with pytest.raises(OutputExists):
        cut(source, tmp_path / "cut")
    assert [file.name for file in (tmp_path / "cut").iterdir()] == ["mine"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [Precision.SAME, Precision.FLOAT32])
def test_weights_that_are_no_numbers(source: Resolved, tmp_path: Path, number: float, dtype: Precision) -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    source = edit_weights(source.path, lambda held: held[name][2].fill_(number))
    with pytest.raises(NonFiniteWeights, match=r"model\.layers\.3\.mlp\.up_proj\.weight holds"):
        cut(source, tmp_path / "cut", dtype=dtype)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_layers_that_go_are_not_read(source: Resolved, tmp_path: Path) -> None:
    name = f"model.layers.{REMOVED[0]}.mlp.up_proj.weight"
    source = edit_weights(source.path, lambda held: held[name].fill_(float("nan")))
    assert all(tensor.isfinite().all() for tensor in tensors(cut(source, tmp_path / "cut")).values())


def test_a_number_too_large_for_the_new_type(source: Resolved, tmp_path: Path) -> None:
    source = edit_weights(source.path, lambda held: held["model.norm.weight"].fill_(1e6))
    with pytest.raises(InvalidCheckpoint, match=r"model\.norm\.weight.*choose bfloat16") as caught:
        cut(source, tmp_path / "cut", dtype=Precision.FLOAT16)
    assert caught.value.loc == ("output", "dtype")


def test_a_setting_that_forbids_it(source: Resolved, tmp_path: Path) -> None:
    path = source.path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"add_cross_attention": True}))
    with pytest.raises(UnsupportedArchitecture, match="add_cross_attention"):
        cut(source, tmp_path / "cut")


def test_a_config_that_transformers_refuses(source: Resolved, tmp_path: Path) -> None:
    path = source.path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 5}))
    with pytest.raises(InvalidCheckpoint, match=r"The model cannot be loaded: .*validate_architecture"):
        cut(resolved(source.path), tmp_path / "cut")
