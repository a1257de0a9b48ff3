"""Models from the hub, against the small server of tests/fake_hub.py."""

from __future__ import annotations

import json
import shutil

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from elder_core import checkpoints, pipeline
from elder_core.errors import (
    AdapterOnly,
    HubUnreachable,
    InvalidCheckpoint,
    ModelNotFound,
    PickledWeights,
    QuantizedCheckpoint,
    UnsupportedArchitecture,
)
from elder_core.inspection import Sources
from elder_core.manifest import read_manifest, verify
from elder_core.parameters import CutParameters
from elder_core.spec import JobSpec, ModelRef
from tests.fake_hub import AGENTS, COMMIT, serving


@pytest.fixture
def hub(tiny_checkpoint, tmp_path):
    """The running server; a test may change `folder`, set `failure` and read `asked`."""
    with serving(shutil.copytree(tiny_checkpoint, tmp_path / "hub")) as server:
        yield server


@pytest.fixture
def sources(tmp_path):
    return Sources(hub_cache=tmp_path / "cache")


def resolve(sources, model_id="team/model", revision=None):
    return checkpoints.resolve(ModelRef(id=model_id, revision=revision), sources)


def downloaded(sources):
    files = (file for file in sources.hub_cache.rglob("*") if file.is_file() and "snapshots" in file.parts)
    return {file.as_posix().rpartition(f"/{COMMIT}/")[2] for file in files}


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_revision_becomes_a_commit(hub, sources, revision, tiny_checkpoint):
    found = resolve(sources, revision=revision)
    assert found.revision == COMMIT
    assert found.info.layers == 6
    assert (found.path / "model.safetensors").read_bytes() == (tiny_checkpoint / "model.safetensors").read_bytes()


def test_only_the_model_is_asked_for(hub, sources):
    resolve(sources)
    assert hub.asked
    assert AGENTS not in hub.asked


@pytest.mark.parametrize(
    "stem", ["model-{}.safetensors", "model.safetensors-{}.safetensors", "pytorch_model-{}.safetensors"]
)
def test_shards_of_any_usual_name_are_downloaded(hub, sources, stem):
    weights = load_file(hub.folder / "model.safetensors")
    (hub.folder / "model.safetensors").unlink()
    shards = {stem.format(f"0000{number}-of-00002"): {} for number in (1, 2)}
    for place, (name, tensor) in enumerate(weights.items()):
        list(shards.values())[place % 2][name] = tensor
    for file, tensors in shards.items():
        save_file(tensors, hub.folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert resolve(sources).info.layers == 6
    assert set(shards) <= downloaded(sources)


def test_layers_are_cut_from_what_was_downloaded(hub, sources, tmp_path):
    spec = JobSpec(model=ModelRef(id="team/model"), method=CutParameters(), layers=(1, 4))
    pipeline.cut(spec, model_dir=tmp_path / "out", sources=sources)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.source.revision, manifest.removed_layers) == (COMMIT, (1, 4))
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (hub.folder / "tokenizer.json").read_bytes()
    verify(tmp_path / "out")


def test_an_adapter_is_refused_before_anything_is_downloaded(hub, sources):
    for file in hub.folder.iterdir():
        file.unlink()
    (hub.folder / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterOnly, match="merge_and_unload"):
        resolve(sources)
    assert downloaded(sources) == set()


def test_only_what_a_checkpoint_needs_is_downloaded(hub, sources):
    for name in (
        "pytorch_model.bin",
        "modeling.py",
        "consolidated.safetensors",
        "data.parquet",
        "LICENSE",
        "README.md",
        "additional_chat_templates/rag.jinja",
        "additional_chat_templates/rag.py",
        "tokenizer/tokenizer.json",
        "onnx/model.safetensors",
    ):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_text("x")
    resolve(sources)
    assert downloaded(sources) == {
        "additional_chat_templates/rag.jinja",
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model_type": "diffllama"}, UnsupportedArchitecture),
        ({"quantization_config": {"bits": 4}}, QuantizedCheckpoint),
        ({"num_hidden_layers": 0}, InvalidCheckpoint),
    ],
)
def test_a_bad_config_is_refused_before_any_weights_are_fetched(hub, sources, changes, error):
    hub.edit_config(**changes)
    with pytest.raises(error):
        resolve(sources)
    assert downloaded(sources) == {"config.json"}


def test_pickled_weights_are_refused_by_name(hub, sources):
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    with pytest.raises(PickledWeights):
        resolve(sources)
    assert not any("/resolve/" in path for path in hub.asked)


def test_a_repository_without_config_is_no_checkpoint(hub, sources):
    (hub.folder / "config.json").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"team/model has no config\.json"):
        resolve(sources)


def test_unknown_model(hub, sources):
    with pytest.raises(ModelNotFound, match=r"no model other/model on the hub.*HF_TOKEN") as caught:
        resolve(sources, "other/model")
    assert caught.value.loc == ("model", "id")


def test_name_that_no_hub_model_can_have(hub, sources):
    with pytest.raises(ModelNotFound):
        resolve(sources, "team/a--b")
    assert hub.asked == []


def test_unknown_revision(hub, sources):
    with pytest.raises(ModelNotFound, match=r"team/model has no revision 'v9'") as caught:
        resolve(sources, revision="v9")
    assert caught.value.loc == ("model", "revision")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((403, {"X-Error-Code": "GatedRepo"}), "is gated: accept its terms"),
        ((401, {"X-Error-Message": "Invalid credentials in Authorization header"}), "status 401"),
        ((403, {"X-Error-Message": "Access to this resource is disabled."}), "no model"),
    ],
)
def test_no_access(hub, sources, failure, message):
    hub.failure = failure
    with pytest.raises(ModelNotFound, match=message):
        resolve(sources)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_in_trouble_may_be_tried_again(hub, sources, status):
    hub.failure = (status, {})
    with pytest.raises(HubUnreachable, match=f"status {status}") as caught:
        resolve(sources)
    assert caught.value.retryable


def test_a_hub_that_is_not_there_may_be_tried_again(hub, sources, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match="give a local model") as caught:
        resolve(sources)
    assert caught.value.retryable


def test_offline_what_is_cached_is_used(hub, sources, monkeypatch):
    online = resolve(sources, revision="main")
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(sources, revision=COMMIT) == online
    with pytest.raises(HubUnreachable):
        resolve(sources, "other/model")
    assert hub.asked == []
