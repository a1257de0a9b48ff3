"""Finding, loading and saving checkpoints; the acceptance test of every family, in a fresh process."""

from __future__ import annotations

import base64
import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from elder_core import checkpoints
from elder_core.errors import (
    ConfigMismatch,
    InvalidCheckpoint,
    ModelNotFound,
    NonFiniteWeights,
    OutputExists,
    PathForbidden,
    PickledWeights,
    QuantizedCheckpoint,
)
from elder_core.inspection import Sources, inspect_checkpoint
from elder_core.manifest import read_manifest
from elder_core.spec import ModelRef, Precision
from elder_core.surgery import remove_layers
from tests.unit.elder_core.acceptance import provenance_of
from tests.unit.elder_core.test_cutting import cut, resolved

SHARD_BYTES = 1_000_000


def save(model, folder, source, *, removed=(1, 4), dtype=Precision.SAME, shard_bytes=SHARD_BYTES, **changes):
    checkpoints.save(
        model,
        folder,
        source=source,
        provenance=provenance_of(removed, **changes),
        dtype=dtype,
        max_shard_bytes=shard_bytes,
    )


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))


@pytest.fixture
def loaded(tiny_checkpoint):
    sources = Sources(allow_paths=True)
    return checkpoints.load(checkpoints.resolve(ModelRef(id=str(tiny_checkpoint)), sources), torch.device("cpu"))


@pytest.fixture
def saved(loaded, tiny_checkpoint, tmp_path):
    """The tiny checkpoint without layers 1 and 4."""
    remove_layers(loaded.model, (1, 4))
    save(loaded.model, tmp_path / "saved", tiny_checkpoint)
    return tmp_path / "saved"


class TestResolve:
    def test_revision_is_a_hash_of_the_contents(self, checkpoint, tiny_checkpoint):
        sources = Sources(model_roots=(checkpoint.parent,))
        found = checkpoints.resolve(ModelRef(id="local:source"), sources)
        assert found.revision.startswith("sha256:")
        assert found.revision == checkpoints.content_hash(tiny_checkpoint)
        assert (found.path, found.info.layers) == (checkpoint.resolve(), 6)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
    def test_revision_changes_with_what_matters(self, checkpoint, name):
        before = checkpoints.content_hash(checkpoint)
        (checkpoint / "test.jsonl").write_text("another file")
        assert checkpoints.content_hash(checkpoint) == before
        with (checkpoint / name).open("ab") as stream:
            stream.write(b"\n")
        assert checkpoints.content_hash(checkpoint) != before

    def test_local_models_have_no_revisions(self, checkpoint):
        with pytest.raises(ModelNotFound, match="leave revision out") as caught:
            checkpoints.resolve(ModelRef(id="local:source", revision="main"), Sources(model_roots=(checkpoint.parent,)))
        assert caught.value.loc == ("model", "revision")

    def test_a_relative_folder_is_no_hub_id_where_paths_are_allowed(self, checkpoint, monkeypatch):
        monkeypatch.chdir(checkpoint.parent.parent)
        found = checkpoints.resolve(
            ModelRef(id=f"{checkpoint.parent.name}/{checkpoint.name}"), Sources(allow_paths=True)
        )
        assert found.path == checkpoint.resolve()

    def test_refusals_come_before_loading(self, checkpoint):
        sources = Sources(model_roots=(checkpoint.parent,))
        with pytest.raises(PathForbidden):
            checkpoints.resolve(ModelRef(id="local:../source"), sources)
        settings = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(settings | {"quantization_config": {"bits": 4}}))
        with pytest.raises(QuantizedCheckpoint):
            checkpoints.resolve(ModelRef(id="local:source"), sources)
        (checkpoint / "model.safetensors").rename(checkpoint / "model.bin")
        (checkpoint / "config.json").write_text(json.dumps(settings))
        with pytest.raises(PickledWeights):
            checkpoints.resolve(ModelRef(id="local:source"), sources)


class TestLoad:
    def load(self, path):
        resolved = checkpoints.resolve(ModelRef(id=str(path)), Sources(allow_paths=True))
        return checkpoints.load(resolved, torch.device("cpu"))

    def edit_weights(self, path, change):
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    def test_computes_in_float32_on_cpu(self, loaded):
        assert loaded.model.dtype == torch.float32
        assert loaded.source.info.dtype == "bfloat16"
        assert not loaded.model.training
        assert loaded.tokenizer("abc")["input_ids"] == [65, 66, 67]

    def test_missing_tensor(self, checkpoint):
        self.edit_weights(checkpoint, lambda tensors: tensors.pop("model.norm.weight"))
        with pytest.raises(ConfigMismatch, match=r"1 missing keys, such as model\.norm\.weight"):
            self.load(checkpoint)

    def test_unexpected_tensor(self, checkpoint):
        self.edit_weights(checkpoint, lambda tensors: tensors.update(extra=torch.zeros(1)))
        with pytest.raises(InvalidCheckpoint, match="1 unexpected keys, such as extra"):
            self.load(checkpoint)

    @pytest.mark.parametrize(
        ("family", "names"),
        [
            ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"]),
            ("gpt_neox", ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"]),
            ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ],
    )
    def test_buffers_of_old_checkpoints_do_not_matter(self, family, names, make_tiny, tiny_tokenizer, tmp_path):
        make_tiny(family).save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)
        self.edit_weights(tmp_path, lambda tensors: tensors.update({name: torch.ones(4) for name in names}))
        assert self.load(tmp_path).source.info.layers == 6

    def test_names_without_the_prefix_of_the_base_model(self, make_tiny, tiny_tokenizer, tmp_path):
        make_tiny("gpt2").save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)

        def shorten(tensors):
            for name in list(tensors):
                tensors[name.removeprefix("transformer.")] = tensors.pop(name)

        self.edit_weights(tmp_path, shorten)
        assert self.load(tmp_path).source.info.layers == 6

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
    def test_weights_that_are_no_numbers(self, checkpoint, number):
        name = "model.layers.3.mlp.up_proj.weight"
        self.edit_weights(checkpoint, lambda tensors: tensors[name][2].fill_(number))
        with pytest.raises(NonFiniteWeights, match=r"model\.layers\.3\.mlp\.up_proj\.weight holds") as caught:
            self.load(checkpoint)
        assert caught.value.loc == ("model", "id")

    def test_buffers_that_are_no_numbers(self, make_tiny, tiny_tokenizer, tmp_path):
        make_tiny("deepseek_v3").save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)

        def spoil(tensors):
            next(tensors[name] for name in tensors if name.endswith("e_score_correction_bias")).fill_(float("nan"))

        self.edit_weights(tmp_path, spoil)
        with pytest.raises(NonFiniteWeights, match="e_score_correction_bias holds"):
            self.load(tmp_path)

    def test_tensor_of_another_shape(self, checkpoint):
        self.edit_weights(checkpoint, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(33)}))
        with pytest.raises(ConfigMismatch, match=r"1 mismatched keys.*model\.norm\.weight"):
            self.load(checkpoint)

    def test_config_that_transformers_refuses(self, checkpoint):
        settings = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(settings | {"num_attention_heads": 5}))
        with pytest.raises(InvalidCheckpoint, match="cannot be loaded"):
            self.load(checkpoint)

    def test_no_tokenizer(self, checkpoint):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (checkpoint / name).unlink()
        with pytest.raises(InvalidCheckpoint, match="tokenizer"):
            self.load(checkpoint)

    def test_broken_tokenizer(self, checkpoint):
        (checkpoint / "tokenizer.json").write_text("{}")
        with pytest.raises(InvalidCheckpoint, match="tokenizer"):
            self.load(checkpoint)

    def test_tokenizer_of_another_model(self, checkpoint, tiny_tokenizer):
        larger = AutoTokenizer.from_pretrained(checkpoint)
        larger.add_tokens(["<extra>"])
        larger.save_pretrained(checkpoint)
        with pytest.raises(InvalidCheckpoint, match=r"token 257 \('<extra>'\).*for tokens 0 to 256 only"):
            self.load(checkpoint)
        source = checkpoints.resolve(ModelRef(id=str(checkpoint)), Sources(allow_paths=True))
        checkpoints.load(source, torch.device("cpu"), largest_id=256)

    def test_code_in_the_checkpoint_is_never_run(self, checkpoint):
        (checkpoint / "modeling.py").write_text("raise SystemExit('ran')")
        settings = json.loads((checkpoint / "config.json").read_text())
        settings["auto_map"] = {"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "modeling.Config"}
        (checkpoint / "config.json").write_text(json.dumps(settings))
        assert type(self.load(checkpoint).model).__module__.startswith("transformers.")

    @pytest.mark.parametrize("how", ["save", "cut"])
    def test_code_in_the_checkpoint_is_not_asked_for_by_the_result(self, checkpoint, tmp_path, how):
        """Some programs trust remote code whatever they load, and the result has none."""
        foreign = {"config.json": {"AutoConfig": "m.C"}, "tokenizer_config.json": {"AutoTokenizer": ["m.T", None]}}
        for name, classes in foreign.items():
            settings = json.loads((checkpoint / name).read_text())
            (checkpoint / name).write_text(json.dumps({**settings, "auto_map": classes}))
        if how == "save":
            model = self.load(checkpoint).model
            remove_layers(model, (1,))
            save(model, tmp_path / "out", checkpoint, removed=(1,))
        else:
            cut(resolved(checkpoint), tmp_path / "out", removed=(1,))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
        assert loaded.config.num_hidden_layers == 5
        assert AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True).encode("abc")


class TestSave:
    def test_contents(self, saved):
        assert sorted(file.name for file in saved.iterdir()) == [
            "README.md",
            "chat_template.jinja",
            "config.json",
            "elder.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]

    def test_dtype_is_kept_though_computed_in_float32(self, saved):
        assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {torch.bfloat16}
        assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"

    @pytest.mark.parametrize("dtype", [Precision.FLOAT32, Precision.FLOAT16, Precision.BFLOAT16])
    def test_dtype_by_request(self, loaded, tiny_checkpoint, tmp_path, dtype):
        save(loaded.model, tmp_path / "out", tiny_checkpoint, dtype=dtype, removed=())
        assert inspect_checkpoint(tmp_path / "out").dtype == dtype.value
        assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype.value
        assert loaded.model.dtype == loaded.model.config.dtype == torch.float32

    def test_weights_too_large_for_the_dtype(self, loaded, tiny_checkpoint, tmp_path):
        with torch.no_grad():
            loaded.model.model.norm.weight[0] = 1e30
        with pytest.raises(InvalidCheckpoint, match=r"model\.norm\.weight.*choose bfloat16"):
            save(loaded.model, tmp_path / "out", tiny_checkpoint, dtype=Precision.FLOAT16)
        assert list(tmp_path.iterdir()) == []

    def test_weights_that_stay_are_those_of_the_source(self, saved, tiny_checkpoint):
        before, after = (load_file(path / "model.safetensors") for path in (tiny_checkpoint, saved))
        for old, new in {0: 0, 2: 1, 3: 2, 5: 3}.items():
            name = "model.layers.{}.mlp.up_proj.weight"
            assert torch.equal(before[name.format(old)], after[name.format(new)])

    def test_tied_embeddings_are_stored_once(self, saved):
        assert "lm_head.weight" not in load_file(saved / "model.safetensors")

    @pytest.mark.parametrize(
        "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    )
    def test_companions_are_copied_as_they_are(self, saved, tiny_checkpoint, name):
        assert (saved / name).read_bytes() == (tiny_checkpoint / name).read_bytes()

    @pytest.mark.parametrize("way", ["save", "cut"])
    def test_named_chat_templates_in_their_folder_are_copied(self, checkpoint, tiny_tokenizer, tmp_path, way):
        before = checkpoints.content_hash(checkpoint)
        named = {"default": "{{ messages[0].content }}", "rag": "{{ documents }}\r\n", "tool_use": "{{ tools }}é"}
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = named
        tokenizer.save_pretrained(checkpoint)
        assert checkpoints.content_hash(checkpoint) != before
        source = resolved(checkpoint)
        if way == "save":
            loaded = checkpoints.load(source, torch.device("cpu"))
            remove_layers(loaded.model, (1, 4))
            save(loaded.model, tmp_path / "out", checkpoint)
        else:
            cut(source, tmp_path / "out")
        names = [f"additional_chat_templates/{name}.jinja" for name in ("rag", "tool_use")]
        for name in names:
            assert (tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes()
        assert (
            AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
            == AutoTokenizer.from_pretrained(checkpoint).chat_template
        )
        assert {*names, "chat_template.jinja"} <= read_manifest(tmp_path / "out").files.keys()
        checkpoints.verify(tmp_path / "out")
        folder = (tmp_path / "out" / names[0]).parent
        assert [path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())] == [0o755, 0o644, 0o644]
        (folder / "rag.jinja").write_text("another")
        with pytest.raises(InvalidCheckpoint, match=names[0]):
            checkpoints.verify(tmp_path / "out")

    @pytest.mark.parametrize("way", ["save", "cut"])
    def test_a_tokenizer_of_mistrals_own_kind_is_copied(self, make_tiny, tmp_path, way):
        source = tmp_path / "source"
        make_tiny("mistral", vocab_size=259).save_pretrained(source)
        ranks = [{"rank": rank, "token_bytes": base64.b64encode(bytes([rank])).decode()} for rank in range(256)]
        specials = [{"rank": rank, "token_str": name} for rank, name in enumerate(("<unk>", "<s>", "</s>"))]
        config = {"pattern": ".", "default_vocab_size": 259, "default_num_special_tokens": 3}
        content = {"config": config, "vocab": ranks, "special_tokens": specials}
        (source / "tekken.json").write_text(json.dumps(content))
        before, revision = checkpoints.load_tokenizer(source), checkpoints.content_hash(source)
        if way == "save":
            model = checkpoints.load(resolved(source), torch.device("cpu")).model
            remove_layers(model, (1, 4))
            save(model, tmp_path / "out", source)
        else:
            cut(resolved(source), tmp_path / "out")
        assert checkpoints.load_tokenizer(tmp_path / "out")("a text") == before("a text")
        (source / "tekken.json").write_text(json.dumps(content | {"vocab": ranks[::-1]}))
        assert checkpoints.content_hash(source) != revision

    def test_an_odd_generation_config_is_kept(self, loaded, checkpoint, tmp_path):
        content = json.dumps({"do_sample": False, "temperature": 0.5, "eos_token_id": [0, 7]})
        (checkpoint / "generation_config.json").write_text(content)
        save(loaded.model, tmp_path / "out", checkpoint)
        assert (tmp_path / "out" / "generation_config.json").read_text() == content

    def test_licence_files_are_copied(self, loaded, checkpoint, tmp_path):
        (checkpoint / "LICENSE.txt").write_text("terms")
        save(loaded.model, tmp_path / "out", checkpoint)
        assert (tmp_path / "out" / "LICENSE.txt").read_text() == "terms"

    def test_shards(self, loaded, tiny_checkpoint, tmp_path):
        save(loaded.model, tmp_path / "out", tiny_checkpoint, shard_bytes=30_000, removed=())
        shards = list((tmp_path / "out").glob("model-*.safetensors"))
        assert len(shards) > 2
        assert checkpoints.checkpoint_bytes(tmp_path / "out") == sum(file.stat().st_size for file in shards)
        assert inspect_checkpoint(tmp_path / "out").layers == 6
        checkpoints.verify(tmp_path / "out")

    def test_the_same_job_gives_the_same_bytes(self, loaded, tiny_checkpoint, tmp_path):
        for name in ("one", "two"):
            save(loaded.model, tmp_path / name, tiny_checkpoint)
        for file in (tmp_path / "one").iterdir():
            assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()

    def test_files_can_be_read_by_others(self, saved):
        assert saved.stat().st_mode & 0o777 == 0o755
        assert {file.stat().st_mode & 0o777 for file in saved.iterdir()} == {0o644}

    def test_a_folder_that_is_not_empty(self, loaded, tiny_checkpoint, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        with pytest.raises(OutputExists, match="not empty"):
            save(loaded.model, tmp_path / "out", tiny_checkpoint)
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]

    def test_a_file_or_link_in_the_way(self, tmp_path):
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        for name in ("file", "link"):
            with pytest.raises(OutputExists):
                checkpoints.check_output(tmp_path / name)
        checkpoints.check_output(tmp_path / "new")

    def test_an_empty_folder_is_filled(self, loaded, tiny_checkpoint, tmp_path):
        (tmp_path / "out").mkdir()
        save(loaded.model, tmp_path / "out", tiny_checkpoint)
        checkpoints.verify(tmp_path / "out")

    def test_a_folder_filled_meanwhile_wins(self, loaded, tiny_checkpoint, tmp_path, monkeypatch):
        monkeypatch.setattr(checkpoints, "write_manifest", lambda *_: (tmp_path / "out" / "theirs").mkdir(parents=True))
        with pytest.raises(OutputExists, match="meanwhile"):
            save(loaded.model, tmp_path / "out", tiny_checkpoint)
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]

    def test_what_a_killed_run_left_goes_with_the_next(self, loaded, tiny_checkpoint, tmp_path, monkeypatch):
        with monkeypatch.context() as killed:
            killed.setattr(shutil, "rmtree", lambda *_, **__: None)
            killed.setattr(checkpoints, "write_manifest", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                save(loaded.model, tmp_path / "out", tiny_checkpoint)
        left, *_ = tmp_path.iterdir()
        others = [
            tmp_path / ".out.backup",
            *(tmp_path / left.name.replace("out", name, 1) for name in ("out2", "out.2")),
        ]
        for other in others:
            other.mkdir()
        with checkpoints._appearing_whole(tmp_path / "out") as living:
            save(loaded.model, tmp_path / "other" / "out", tiny_checkpoint)
            checkpoints._remove_abandoned(tmp_path / "out")
            assert living.is_dir()
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "other", tmp_path / "out", *others])

    def test_nothing_is_left_after_an_error(self, loaded, tiny_checkpoint, tmp_path, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(checkpoints, "write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(loaded.model, tmp_path / "deep" / "out", tiny_checkpoint)
        assert list((tmp_path / "deep").iterdir()) == []


class TestManifest:
    def test_tells_where_the_checkpoint_comes_from(self, saved):
        manifest = read_manifest(saved)
        assert manifest.layer_map == {0: 0, 2: 1, 3: 2, 5: 3}
        assert manifest.removed_layers == (1, 4)
        assert (manifest.seeds.run, manifest.seeds.calibration) == (3, 4)
        assert [layer.weight for layer in manifest.layers] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
        assert (manifest.source.id, manifest.source.revision) == ("local:tiny", "sha256:00")
        assert manifest.files.keys() == {file.name for file in saved.iterdir()} - {"elder.json"}

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
    def test_verify_names_a_changed_file(self, saved, name):
        content = bytearray((saved / name).read_bytes())
        content[-1] ^= 1
        (saved / name).write_bytes(content)
        with pytest.raises(InvalidCheckpoint, match=name):
            checkpoints.verify(saved)

    def test_verify_names_a_missing_file(self, saved):
        (saved / "tokenizer.json").unlink()
        with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.json is missing"):
            checkpoints.verify(saved)

    @pytest.mark.parametrize("content", ["", "{}", "[]"])
    def test_verify_needs_a_manifest(self, saved, content):
        (saved / "elder.json").write_text(content)
        with pytest.raises(InvalidCheckpoint, match=r"elder\.json is not valid"):
            checkpoints.verify(saved)
        (saved / "elder.json").unlink()
        with pytest.raises(InvalidCheckpoint, match=r"elder\.json cannot be read"):
            checkpoints.verify(saved)

    @pytest.mark.parametrize("name", ["../outside", "in/../../outside", "/outside", ""])
    def test_verify_stays_in_the_folder(self, saved, name):
        manifest = json.loads((saved / "elder.json").read_text())
        manifest["files"][name] = {"bytes": 0, "sha256": ""}
        (saved / "elder.json").write_text(json.dumps(manifest))
        with pytest.raises(InvalidCheckpoint, match="not in its folder"):
            checkpoints.verify(saved)


class TestModelCard:
    def card(self, loaded, source, tmp_path, **changes):
        save(loaded.model, tmp_path / "out", source, **changes)
        return (tmp_path / "out" / "README.md").read_text()

    def test_says_what_was_done(self, loaded, checkpoint, tmp_path):
        card = self.card(loaded, checkpoint, tmp_path)
        assert "# local:tiny, 4 of 6 layers" in card
        assert "`local:tiny` at revision `sha256:00`" in card
        assert "Removed layers, counted from 0 in the source: 1, 4." in card
        assert "base_model" not in card
        assert "Perplexity" not in card

    def test_hub_models_are_named_as_base(self, loaded, checkpoint, tmp_path):
        assert "\nbase_model: a/b\n" in self.card(loaded, checkpoint, tmp_path, model_id="a/b")

    def test_licence_is_that_of_the_source(self, loaded, checkpoint, tmp_path):
        (checkpoint / "README.md").write_text("---\nlicense: other\nlicense_name: psf\ntags: [a]\n---\nlicense: no\n")
        card = self.card(loaded, checkpoint, tmp_path)
        assert card.startswith("---\nlicense: other\nlicense_name: psf\nlibrary_name: transformers\n")
        assert "license: no" not in card
