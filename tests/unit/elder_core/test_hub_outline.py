"""The outline of a hub model is to inspection what the downloaded model is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from elder_core import hub_outline
from elder_core.errors import (
    AdapterOnly,
    ConfigMismatch,
    HubUnreachable,
    IndexForbidden,
    InvalidCheckpoint,
    ModelNotFound,
    ShardMissing,
    UnsupportedArchitecture,
)
from elder_core.hub_outline import lay_outline
from elder_core.inspection import inspect_checkpoint
from elder_core.sizes import saved_sizes
from elder_core.spec import OutputSpec
from tests.fake_hub import COMMIT, MODEL, serving

SECONDS = 60


@pytest.fixture
def hub(tiny_checkpoint, tmp_path):
    with serving(shutil.copytree(tiny_checkpoint, tmp_path / "hub")) as server:
        yield server


def outlined(tmp_path, *, model=MODEL, revision=None, seconds=SECONDS):
    folder = tmp_path / "outline"
    folder.mkdir()
    lay_outline(model, revision, folder, seconds)
    return inspect_checkpoint(folder)


def shard(hub, names):
    """Store the weights in two files of these names, each tensor in the one or the other by turns."""
    weights = load_file(hub.folder / "model.safetensors")
    (hub.folder / "model.safetensors").unlink()
    parts = {name: {} for name in names}
    for place, (name, tensor) in enumerate(weights.items()):
        parts[names[place % 2]][name] = tensor
    for file, tensors in parts.items():
        save_file(tensors, hub.folder / file, {"format": "pt"})
    write_index(hub, {name: file for file, tensors in parts.items() for name in tensors})


def write_index(hub, weight_map):
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def json_of(path):
    """What of a checkpoint's file is JSON."""
    content = path.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")] if path.suffix == ".safetensors" else content


def parts(content):
    return sum(content.count(sign) for sign in b"{[:")


def same(seen, real):
    output = OutputSpec()
    return replace(seen, path=real.path) == real and saved_sizes(seen, output) == saved_sizes(real, output)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
@pytest.mark.parametrize("ranges", [True, False])
def test_inspection_sees_the_same(hub, tmp_path, revision, ranges):
    hub.ranges = ranges
    assert same(outlined(tmp_path, revision=revision), inspect_checkpoint(hub.folder))


def test_of_shards_too(hub, tmp_path):
    shard(hub, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    assert same(outlined(tmp_path), inspect_checkpoint(hub.folder))


def test_a_long_header_is_asked_for_again(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_outline, "FIRST_BYTES", 100)
    assert same(outlined(tmp_path), inspect_checkpoint(hub.folder))
    assert len([path for path in hub.asked if "model.safetensors" in path]) == 2


def test_no_weight_is_sent_and_none_takes_disk(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_outline, "FIRST_BYTES", 100)
    weights = hub.folder / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    outlined(tmp_path)
    laid = tmp_path / "outline" / "model.safetensors"
    assert hub.sent_bytes < header + 10_000 < weights.stat().st_size
    assert laid.stat().st_size == weights.stat().st_size
    assert laid.stat().st_blocks * 512 < header + 10_000


def test_nothing_is_asked_of_a_model_once_it_is_refused(hub, tmp_path):
    hub.edit_config(model_type="diffllama")
    with pytest.raises(UnsupportedArchitecture):
        outlined(tmp_path)
    assert not any("safetensors" in path for path in hub.asked)


@pytest.mark.parametrize("part", [0, 4, 300])
def test_weights_that_are_cut_short(hub, tmp_path, part):
    weights = hub.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:part])
    with pytest.raises(InvalidCheckpoint, match="cut short"):
        outlined(tmp_path)


def test_a_config_of_other_weights(hub, tmp_path):
    hub.edit_config(num_hidden_layers=5)
    with pytest.raises(ConfigMismatch):
        outlined(tmp_path)


def test_an_adapter_within_the_weights(hub, tmp_path):
    weights = hub.folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name.replace("q_proj.weight", "q_proj.lora_A.default.weight")] = tensors[name].clone()
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(AdapterOnly):
        outlined(tmp_path)


@pytest.mark.parametrize(
    ("named", "error"),
    [
        ("model-00003-of-00003.safetensors", ShardMissing),
        ("weights-a.safetensors", ShardMissing),  # is there, but under a name that would not be downloaded
        ("../model-00001-of-00002.safetensors", IndexForbidden),
    ],
)
def test_an_index_that_leads_nowhere(hub, tmp_path, named, error):
    shard(hub, ["model-00001-of-00002.safetensors", "weights-a.safetensors"])
    write_index(hub, {"x": named})
    with pytest.raises(error):
        outlined(tmp_path)


@pytest.mark.parametrize("limit", ["MOST_BYTES", "MOST_PARTS"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "model-00002-of-00002.safetensors"])
def test_more_json_than_is_looked_at(hub, tmp_path, monkeypatch, limit, file):
    shard(hub, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    before = [hub.folder / name for name in ("config.json", "model.safetensors.index.json")]
    before.append(hub.folder / "model-00001-of-00002.safetensors")
    last = hub.folder / file
    read = [json_of(path) for path in [path for path in before if path.name < last.name or path == before[0]]]
    fits = {"MOST_BYTES": sum(map(len, read)), "MOST_PARTS": sum(map(parts, read))}
    monkeypatch.setattr(hub_outline, limit, fits[limit] - 1 if last == before[0] else fits[limit])
    with pytest.raises(HubUnreachable, match="too large to be looked at"):
        outlined(tmp_path)


def test_a_header_that_is_too_large_is_not_asked_for(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_outline, "FIRST_BYTES", 100)
    monkeypatch.setattr(hub_outline, "MOST_BYTES", (hub.folder / "config.json").stat().st_size + 200)
    with pytest.raises(HubUnreachable, match="too large to be looked at"):
        outlined(tmp_path)
    assert len([path for path in hub.asked if "model.safetensors" in path]) == 1


def test_a_file_that_is_too_large_is_not_read_to_its_end(hub, tmp_path, monkeypatch):
    hub.ranges = False
    monkeypatch.setattr(hub_outline, "MOST_BYTES", 1000)
    hub.edit_config(padding="x" * 100_000_000)
    with pytest.raises(HubUnreachable, match="too large to be looked at"):
        outlined(tmp_path)
    assert hub.sent_bytes < 100_000_000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_mirror_that_does_not_say_how_large_json_is(hub, tmp_path, ranges):
    hub.ranges = ranges
    hub.lengths = False
    if ranges:
        assert same(outlined(tmp_path), inspect_checkpoint(hub.folder))
    else:
        with pytest.raises(HubUnreachable, match=r"how large model\.safetensors is"):
            outlined(tmp_path)


def test_a_weight_file_that_was_read_to_its_end_is_as_large_as_it_is(hub, tmp_path, monkeypatch):
    hub.ranges = hub.lengths = False
    monkeypatch.setattr(hub_outline, "FIRST_BYTES", (hub.folder / "model.safetensors").stat().st_size + 1)
    assert same(outlined(tmp_path), inspect_checkpoint(hub.folder))


HIDDEN = [(403, {"X-Error-Code": "GatedRepo"}), (401, {"X-Error-Code": "GatedRepo"})]


@pytest.mark.parametrize("failure", HIDDEN)
def test_a_gated_model_shows_its_names_only(hub, tmp_path, monkeypatch, failure):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.file_failure = failure
    with pytest.raises(ModelNotFound, match=r"is gated.*HF_TOKEN"):
        outlined(tmp_path)


@pytest.mark.parametrize("failure", HIDDEN)
def test_without_a_token_nobody_knows(hub, tmp_path, failure):
    hub.file_failure = failure
    with pytest.raises(HubUnreachable, match="set HF_TOKEN"):
        outlined(tmp_path)


def test_time_is_up(hub, tmp_path):
    with pytest.raises(HubUnreachable):
        outlined(tmp_path, seconds=1e-6)


def test_the_token_goes_to_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    outlined(tmp_path)
    assert set(hub.tokens) == {"Bearer hf_secret"}
