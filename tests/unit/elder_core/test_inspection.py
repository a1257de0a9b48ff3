"""What is known of models and texts without loading them, and every refusal."""

from __future__ import annotations

import json
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import transformers
from safetensors.numpy import load_file, save_file

from elder_core import inspection
from elder_core.calibration.windows import window_length
from elder_core.errors import (
    AdapterOnly,
    ConfigMismatch,
    IndexForbidden,
    InvalidCheckpoint,
    ModelNotFound,
    PathForbidden,
    PickledWeights,
    QuantizedCheckpoint,
    ShardMissing,
    TextEmpty,
    TextFormat,
    TextNotFound,
    TextNotUtf8,
    TextTooLarge,
    TextTooShort,
    UnsupportedArchitecture,
)
from elder_core.inspection import Sources
from elder_core.weight_files import MAX_JSON_BYTES, checkpoint_bytes


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "root" / "model"))


@pytest.fixture
def sources(checkpoint, tmp_path):
    """One folder below a builtin root, a model root and a text root; `outside` lies beside them."""
    outside = tmp_path / "outside"
    shutil.copytree(checkpoint, outside)
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "notes.txt").write_text("text")
    (tmp_path / "texts" / "deep" / "more.jsonl").write_text('{"text": "more"}')
    (tmp_path / "outside.txt").write_text("secret")
    shutil.copytree(checkpoint, tmp_path / "builtin" / "manuals-16l")
    (tmp_path / "builtin" / "manuals-texts").mkdir()
    (tmp_path / "builtin" / "manuals-texts" / "test.jsonl").write_text('{"text": "test"}')
    return Sources(
        builtin_root=tmp_path / "builtin", model_roots=(checkpoint.parent,), text_roots=(tmp_path / "texts",)
    )


def edit_config(checkpoint, **changes):
    path = checkpoint / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))


def write_safetensors(path, header, size):
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(size))


def shard(checkpoint, **names):
    """Turn the single file into two shards with an index; `names` renames them in the index alone."""
    single = checkpoint / "model.safetensors"
    raw = single.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    header.pop("__metadata__", None)
    weight_map = {}
    for number, part in enumerate((list(header)[::2], list(header)[1::2]), start=1):
        name, offset, entries, content = f"model-0000{number}-of-00002.safetensors", 0, {}, b""
        for tensor in part:
            begin, end = header[tensor]["data_offsets"]
            entries[tensor] = header[tensor] | {"data_offsets": [offset, offset + end - begin]}
            offset += end - begin
            content += data[begin:end]
            weight_map[tensor] = names.get(f"shard{number}", name)
        raw_header = json.dumps(entries).encode()
        (checkpoint / name).write_bytes(struct.pack("<Q", len(raw_header)) + raw_header + content)
    single.unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


class TestInspectCheckpoint:
    def test_says_what_is_there(self, checkpoint):
        info = inspection.inspect_checkpoint(checkpoint)
        assert info == inspection.CheckpointInfo(
            path=checkpoint,
            model_type="llama",
            architecture="LlamaForCausalLM",
            layers=6,
            hidden_size=32,
            max_positions=64,
            dtype="bfloat16",
            weight_bytes=(checkpoint / "model.safetensors").stat().st_size,
        )

    def test_dtype_is_that_of_the_weights_not_of_the_config(self, checkpoint):
        edit_config(checkpoint, dtype="float16")
        assert inspection.inspect_checkpoint(checkpoint).dtype == "bfloat16"

    def test_shards_are_read_through_the_index(self, checkpoint):
        shard(checkpoint)
        info = inspection.inspect_checkpoint(checkpoint)
        assert (info.layers, info.dtype) == (6, "bfloat16")
        assert info.weight_bytes == checkpoint_bytes(checkpoint) > 10_000

    @pytest.mark.parametrize(
        ("family", "names"),
        [
            ("bloom", {"hidden_size": "n_embed", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}),
            ("falcon", {"hidden_size": "n_embed"}),
            ("gpt2", {"n_embd": "hidden_size", "n_layer": "num_hidden_layers"}),
        ],
    )
    def test_old_names_of_settings(self, family, names, make_tiny, tmp_path):
        make_tiny(family).save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({names.get(name, name): value for name, value in settings.items()}))
        info = inspection.inspect_checkpoint(tmp_path)
        assert (info.layers, info.hidden_size) == (6, 32)
        loaded, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert [key for kind in loading.values() for key in kind] == []
        assert loaded.config.hidden_size == 32

    def test_settings_left_out_are_the_defaults(self, make_tiny, tmp_path):
        make_tiny("gemma3_text", max_position_embeddings=131_072).save_pretrained(tmp_path)
        edit_config(tmp_path, max_position_embeddings=...)
        assert inspection.inspect_checkpoint(tmp_path).max_positions == 131_072

    @pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt"])
    def test_every_family(self, family, make_tiny, tmp_path):
        make_tiny(family).save_pretrained(tmp_path)
        info = inspection.inspect_checkpoint(tmp_path)
        assert (info.model_type, info.layers, info.hidden_size, info.max_positions) == (family, 6, 32, 64)

    def test_only_pickled_weights(self, checkpoint):
        (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
        with pytest.raises(PickledWeights, match=r"pytorch_model\.bin.*save_pretrained"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize("name", ["consolidated.00.pth", "model.pt", "model.ckpt", "model.pkl"])
    def test_other_pickles(self, checkpoint, name):
        (checkpoint / "model.safetensors").rename(checkpoint / name)
        with pytest.raises(PickledWeights, match=name):
            inspection.inspect_checkpoint(checkpoint)

    def test_pickles_beside_safetensors_that_transformers_does_not_load(self, checkpoint):
        """As Mistral's folders: what its own code loads, and pickles of the weights that transformers would load."""
        (checkpoint / "model.safetensors").rename(checkpoint / "consolidated.safetensors")
        with pytest.raises(InvalidCheckpoint, match=r"no model\.safetensors .*consolidated\.safetensors is no name"):
            inspection.inspect_checkpoint(checkpoint)
        (checkpoint / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(PickledWeights, match=r"pytorch_model\.bin.*consolidated\.safetensors is no name"):
            inspection.inspect_checkpoint(checkpoint)

    def test_pickles_beside_safetensors_do_not_matter(self, checkpoint):
        (checkpoint / "pytorch_model.bin").write_bytes(b"")
        assert inspection.inspect_checkpoint(checkpoint).layers == 6

    @pytest.mark.parametrize("field", ["quantization_config", "compression_config"])
    def test_quantised_by_config(self, checkpoint, field):
        edit_config(checkpoint, **{field: {"quant_method": "gptq", "bits": 4}})
        with pytest.raises(QuantizedCheckpoint, match="made from"):
            inspection.inspect_checkpoint(checkpoint)

    def test_quantised_by_weights(self, checkpoint):
        write_safetensors(
            checkpoint / "model.safetensors",
            {"model.layers.0.w": {"dtype": "I32", "shape": [4], "data_offsets": [0, 16]}},
            16,
        )
        with pytest.raises(QuantizedCheckpoint, match="stored as I32"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize("name", ["qweight", "qzeros"])
    def test_quantised_by_weights_that_are_few_beside_the_embeddings(self, checkpoint, name):
        write_safetensors(
            checkpoint / "model.safetensors",
            {
                "model.embed_tokens.weight": {"dtype": "F16", "shape": [16], "data_offsets": [0, 32]},
                f"model.layers.0.mlp.up_proj.{name}": {"dtype": "I32", "shape": [4], "data_offsets": [32, 48]},
            },
            48,
        )
        with pytest.raises(QuantizedCheckpoint, match=f"{name}: this checkpoint is quantised"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize("model_type", ["eliza", "", None, ["llama"], 7])
    def test_unsupported_architecture(self, checkpoint, model_type):
        edit_config(checkpoint, model_type=model_type)
        with pytest.raises(UnsupportedArchitecture, match="is not supported; docs"):
            inspection.inspect_checkpoint(checkpoint)

    def test_unsupported_setting(self, make_tiny, tmp_path):
        make_tiny("gpt2", scale_attn_by_inverse_layer_idx=True).save_pretrained(tmp_path)
        with pytest.raises(UnsupportedArchitecture, match="inverse_layer_idx"):
            inspection.inspect_checkpoint(tmp_path)

    @pytest.mark.parametrize("classes", [["LlamaForSequenceClassification"], "LlamaForCausalLM", [7]])
    def test_no_language_model(self, checkpoint, classes):
        edit_config(checkpoint, architectures=classes)
        with pytest.raises(UnsupportedArchitecture, match="give a LlamaForCausalLM"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize(
        ("model_type", "name"),
        [
            ("mpt", "MPTForCausalLM"),
            ("phimoe", "PhiMoEForCausalLM"),
            ("internlm3", "InternLM3ForCausalLM"),
            ("bailing_hybrid", "BailingMoeV3ForCausalLM"),
        ],
    )
    def test_the_class_as_its_first_authors_call_it(self, model_type, name):
        assert (
            inspection.inspect_config({"model_type": model_type, "architectures": [name]}).row.model_type == model_type
        )

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"model_type": "llama", "head_dim": 10**13}, "head_dim"),
            ({"model_type": "gpt_neo", "num_layers": 3, "attention_types": [[["global"], 10**12]]}, "attention_types"),
            (
                {"model_type": "llava", "vision_config": {"num_hidden_layers": 10**12}},
                r"vision_config\.num_hidden_layers",
            ),
            ({"model_type": "qwen2_vl", "vision_config": {"depth": 10**12}}, r"vision_config\.depth"),
            ({"model_type": "mixtral", "num_local_experts": 10**6}, "num_local_experts"),
            ({"model_type": "deepseek_v3", "n_routed_experts": 10**6}, "n_routed_experts"),
        ],
    )
    def test_absurd_numbers_elsewhere(self, settings, named):
        """Refused without building as much as they say."""
        with pytest.raises(ConfigMismatch, match=named):
            inspection.inspect_config(settings)

    @pytest.mark.parametrize(
        "settings",
        [
            {"model_type": "qwen3_moe", "decoder_sparse_step": "2"},
            {"model_type": "qwen3_moe", "mlp_only_layers": "2"},
            {"model_type": "jamba", "attn_layer_period": 0, "attn_layer_offset": 0},
            {
                "model_type": "ernie4_5_moe",
                "moe_layer_interval": 0,
                "moe_layer_start_index": 1,
                "moe_layer_end_index": -1,
            },
            {"model_type": "recurrent_gemma", "block_types": []},
            {"model_type": "gpt_neo", "num_layers": 3, "attention_types": [[["global"], "x"]]},
        ],
        ids=lambda settings: settings["model_type"],
    )
    def test_rules_by_index_that_say_nothing(self, settings):
        with pytest.raises(ConfigMismatch, match="cannot be read"):
            inspection.inspect_config(settings)

    @pytest.mark.parametrize("count", [0, -1, 10**12, "6", 6.0, True, None])
    def test_absurd_layer_count(self, checkpoint, count):
        edit_config(checkpoint, num_hidden_layers=count)
        with pytest.raises(ConfigMismatch, match=r"num_hidden_layers.*1 to 10000"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize("count", [5, 7, 9_999])
    def test_layer_count_that_the_weights_do_not_have(self, checkpoint, count):
        edit_config(checkpoint, num_hidden_layers=count)
        with pytest.raises(ConfigMismatch, match=rf"{count} layers .*but the weights are of 6"):
            inspection.inspect_checkpoint(checkpoint)

    def test_layer_types_of_another_length(self, make_tiny, tmp_path):
        make_tiny("qwen2").save_pretrained(tmp_path)
        edit_config(tmp_path, layer_types=["full_attention"] * 5)
        with pytest.raises(ConfigMismatch, match=r"6 layers .*5 entries in layer_types"):
            inspection.inspect_checkpoint(tmp_path)

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 100_000], ids=range(7)
    )
    def test_config_that_is_none(self, checkpoint, content):
        (checkpoint / "config.json").write_bytes(content)
        with pytest.raises(InvalidCheckpoint, match=r"config\.json"):
            inspection.inspect_checkpoint(checkpoint)

    def test_config_of_absurd_size_is_not_read(self, checkpoint):
        with (checkpoint / "config.json").open("wb") as stream:
            stream.truncate(MAX_JSON_BYTES + 1)
        with pytest.raises(InvalidCheckpoint, match="larger than"):
            inspection.inspect_checkpoint(checkpoint)

    def test_config_missing(self, checkpoint):
        (checkpoint / "config.json").unlink()
        with pytest.raises(InvalidCheckpoint, match=r"no config\.json"):
            inspection.inspect_checkpoint(checkpoint)

    def test_weights_missing(self, checkpoint):
        (checkpoint / "model.safetensors").unlink()
        with pytest.raises(InvalidCheckpoint, match=r"no model\.safetensors"):
            inspection.inspect_checkpoint(checkpoint)

    def test_weights_under_another_name(self, checkpoint):
        (checkpoint / "model.safetensors").rename(checkpoint / "other.safetensors")
        with pytest.raises(InvalidCheckpoint, match=r"no model\.safetensors"):
            inspection.inspect_checkpoint(checkpoint)

    def test_adapter(self, checkpoint):
        """As peft writes it: beside the adapter there is no config and no model."""
        for file in checkpoint.iterdir():
            file.unlink()
        (checkpoint / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        (checkpoint / "adapter_model.safetensors").write_bytes(b"not looked at")
        with pytest.raises(AdapterOnly, match="merge_and_unload"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
    def test_adapter_beside_its_model(self, checkpoint, name):
        (checkpoint / name).write_text("{}")
        with pytest.raises(AdapterOnly, match=r"Merge it into its model first.*take the adapter's files away"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize("name", ["lora_A.default.weight", "lora_embedding_B.default", "base_layer.weight"])
    def test_adapter_within_its_model(self, checkpoint, name):
        """As save_pretrained writes a model that peft has changed in place."""
        held = safetensors.torch.load_file(checkpoint / "model.safetensors")
        held[f"model.layers.0.self_attn.q_proj.{name}"] = held["model.layers.0.self_attn.q_proj.weight"].clone()
        safetensors.torch.save_file(held, checkpoint / "model.safetensors")
        with pytest.raises(AdapterOnly, match=r"not merged into them .*Merge it into its model first"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("hidden_size", 48, r"hidden_size is 48, but self_attn.o_proj.weight is \[32, 32\]"),
            ("intermediate_size", 64, r"intermediate_size is 64, but mlp.down_proj.weight is \[32, 48\]"),
            ("vocab_size", 300, r"vocab_size is 300, but model.embed_tokens.weight is \[257, 32\]"),
        ],
    )
    def test_shapes_that_the_config_does_not_tell_of(self, checkpoint, field, value, said):
        edit_config(checkpoint, **{field: value})
        with pytest.raises(ConfigMismatch, match=said):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (
                lambda held: held.pop("model.layers.3.mlp.up_proj.weight"),
                r"mlp.up_proj.weight is \[48, 32\] in layer 0, but missing in layer 3",
            ),
            (
                lambda held: held.pop("model.layers.0.mlp.up_proj.weight"),
                r"mlp.up_proj.weight is \[48, 32\] in layer 1, but missing in layer 0",
            ),
            (
                lambda held: held.update({"model.layers.5.mlp.up_proj.weight": np.zeros((48, 33), "float16")}),
                r"mlp.up_proj.weight is \[48, 32\] in layer 0, but \[48, 33\] in layer 5",
            ),
            (
                lambda held: held.update({"model.layers.2.extra": np.zeros(1, "float16")}),
                r"extra is \[1\] in layer 2, but missing in layer 0",
            ),
        ],
    )
    def test_layers_that_are_not_alike(self, make_tiny, tmp_path, damage, said):
        make_tiny("llama").half().save_pretrained(tmp_path)
        held = load_file(tmp_path / "model.safetensors")
        damage(held)
        save_file(held, tmp_path / "model.safetensors")
        with pytest.raises(ConfigMismatch, match=said):
            inspection.inspect_checkpoint(tmp_path)

    def test_of_weights_however_large_only_the_header_is_read(self, checkpoint):
        """64 GiB, all hole: reading it would take minutes."""
        weights = checkpoint / "model.safetensors"
        shape = [1 << 18, 1 << 16]
        header = {
            f"model.layers.{layer}.mlp.down_proj.weight": {
                "dtype": "F16",
                "shape": shape,
                "data_offsets": [layer << 35, (layer + 1) << 35],
            }
            for layer in range(2)
        }
        write_safetensors(weights, header, 0)
        with weights.open("ab") as stream:
            stream.truncate(weights.stat().st_size + (1 << 36))
        edit_config(checkpoint, num_hidden_layers=2)
        with pytest.raises(
            ConfigMismatch, match=r"intermediate_size is 48, but mlp.down_proj.weight is \[262144, 65536\]"
        ):
            inspection.inspect_checkpoint(checkpoint)

    def test_shard_missing(self, checkpoint):
        shard(checkpoint)
        (checkpoint / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(ShardMissing, match=r"model-00002-of-00002\.safetensors, which is missing"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize(
        "name",
        ["../outside/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "a\\b.safetensors", "w.bin"],
    )
    def test_index_that_leads_elsewhere(self, checkpoint, name):
        shard(checkpoint, shard2=name)
        with pytest.raises(IndexForbidden, match="not the name of a safetensors file in the same folder"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}', "{"])
    def test_index_without_a_map(self, checkpoint, content):
        shard(checkpoint)
        (checkpoint / "model.safetensors.index.json").write_text(content)
        with pytest.raises(InvalidCheckpoint, match=r"index\.json"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize("kept_bytes", [0, 7, 8, 100, -1])
    def test_weights_cut_short(self, checkpoint, kept_bytes):
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:kept_bytes])
        with pytest.raises(InvalidCheckpoint, match="cut short"):
            inspection.inspect_checkpoint(checkpoint)

    @pytest.mark.parametrize(
        "entry",
        [
            7,
            {},
            {"dtype": "F32"},
            {"dtype": "F32", "data_offsets": [8, 0]},
            {"dtype": "F32", "data_offsets": [0]},
            {"dtype": "F32", "data_offsets": ["a", "b"]},
            {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
            {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
            {"dtype": "F32", "shape": [2]},
        ],
    )
    def test_header_that_makes_no_sense(self, checkpoint, entry):
        write_safetensors(checkpoint / "model.safetensors", {"model.layers.0.w": entry}, 8)
        with pytest.raises(InvalidCheckpoint, match=r"model\.safetensors"):
            inspection.inspect_checkpoint(checkpoint)

    def test_tensors_that_overlap(self, checkpoint):
        entry = {"dtype": "F32", "shape": [1]}
        header = {"a": entry | {"data_offsets": [0, 4]}, "b": entry | {"data_offsets": [0, 4]}}
        write_safetensors(checkpoint / "model.safetensors", header, 8)
        with pytest.raises(InvalidCheckpoint, match="tells of more, or other, tensors"):
            inspection.inspect_checkpoint(checkpoint)

    def test_no_tensors(self, checkpoint):
        write_safetensors(checkpoint / "model.safetensors", {}, 0)
        with pytest.raises(InvalidCheckpoint, match="no tensors"):
            inspection.inspect_checkpoint(checkpoint)


class TestLocalModel:
    def test_by_name(self, sources, checkpoint):
        assert inspection.local_model("local:model", sources) == checkpoint.resolve()
        assert inspection.local_model("builtin:manuals-16l", sources).name == "manuals-16l"

    @pytest.mark.parametrize("kind", ["local:", "builtin:", ""])
    @pytest.mark.parametrize(
        "name", ["../outside", "/etc", "a/../../outside", "..", "..\\outside", "C:\\x", "~/x", "x\0"]
    )
    def test_names_that_lead_outside(self, sources, kind, name):
        with pytest.raises(PathForbidden) as caught:
            inspection.local_model(kind + name, sources)
        assert caught.value.loc == ("model", "id")

    def test_absolute_path_of_the_model_itself(self, sources, checkpoint):
        with pytest.raises(PathForbidden, match="absolute"):
            inspection.local_model(str(checkpoint), sources)

    def test_link_to_outside(self, sources, checkpoint):
        (checkpoint.parent / "link").symlink_to(sources.builtin_root.parent / "outside")
        with pytest.raises(PathForbidden, match="symbolic link"):
            inspection.local_model("local:link", sources)
        assert "local:link" not in inspection.available_models(sources)

    def test_file_that_links_to_outside(self, sources, checkpoint):
        weights = checkpoint / "model.safetensors"
        weights.unlink()
        weights.symlink_to(sources.builtin_root.parent / "outside" / "model.safetensors")
        with pytest.raises(PathForbidden, match=r"model\.safetensors in model is a symbolic link"):
            inspection.local_model("local:model", sources)

    def test_links_within_the_root_are_fine(self, sources, checkpoint):
        (checkpoint.parent / "link").symlink_to(checkpoint)
        (checkpoint / "alias.json").symlink_to(checkpoint / "config.json")
        assert inspection.local_model("local:link", sources) == checkpoint.resolve()

    @pytest.mark.parametrize(
        "model", ["local:none", "local:", "local:.", "builtin:none", "gpt2", "", "local:" + "x" * 400]
    )
    def test_unknown(self, sources, model):
        with pytest.raises(ModelNotFound, match=r"here: builtin:manuals-16l, local:model\.") as caught:
            inspection.local_model(model, sources)
        assert caught.value.loc == ("model", "id")

    def test_a_loop_of_links(self, sources, checkpoint):
        (checkpoint.parent / "loop").symlink_to(checkpoint.parent / "loop")
        with pytest.raises(ModelNotFound):
            inspection.local_model("local:loop", sources)

    def test_any_path_where_allowed(self, sources, checkpoint):
        outside = sources.builtin_root.parent / "outside"
        assert inspection.local_model(str(outside), Sources(allow_paths=True)) == outside.resolve()
        with pytest.raises(ModelNotFound):
            inspection.local_model(str(outside / "none"), Sources(allow_paths=True))
        with pytest.raises(PathForbidden):
            inspection.local_model("local:../outside", Sources(allow_paths=True))

    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ("HuggingFaceTB/SmolLM2-135M", True),
            ("a/b", True),
            ("builtin:manuals-16l", False),
            ("local:a/b", False),
            ("gpt2", False),
            ("../x", False),
            ("./x/y", False),
            ("a/..", False),
            ("a/b/c", False),
            ("/a/b", False),
            ("a/b\n", False),
        ],
    )
    def test_hub_ids(self, model, expected):
        assert inspection.is_hub_id(model) is expected

    def test_the_bundled_root_is_found_without_settings(self, monkeypatch):
        monkeypatch.delenv("ELDER_BUILTIN_ROOT", raising=False)
        assert (Sources().builtin_root / "train_manuals.py").is_file()

    def test_the_bundled_root_by_environment(self, monkeypatch, tmp_path):
        monkeypatch.setenv("ELDER_BUILTIN_ROOT", str(tmp_path))
        assert Sources().builtin_root == tmp_path


class TestTexts:
    def test_by_name(self, sources, tmp_path):
        uploaded = Sources(texts=(("cal_1", tmp_path / "outside.txt"),))
        assert inspection.text_path("cal_1", uploaded) == tmp_path / "outside.txt"
        assert inspection.text_path("local:notes.txt", sources).read_text() == "text"
        assert inspection.text_path("local:deep/more.jsonl", sources).name == "more.jsonl"
        assert inspection.text_path("builtin:manuals-test", sources).name == "test.jsonl"

    def test_listed(self, sources):
        assert inspection.available_texts(sources) == ["builtin:manuals-test", "local:notes.txt"]

    @pytest.mark.parametrize("kind", ["local:", "builtin:", ""])
    @pytest.mark.parametrize("name", ["../outside.txt", "/etc/passwd", "deep/../../outside.txt"])
    def test_names_that_lead_outside(self, sources, kind, name):
        with pytest.raises(PathForbidden):
            inspection.text_path(kind + name, sources)

    def test_link_to_outside(self, sources, tmp_path):
        (tmp_path / "texts" / "link.txt").symlink_to(tmp_path / "outside.txt")
        with pytest.raises(PathForbidden, match="symbolic link"):
            inspection.text_path("local:link.txt", sources)
        assert "local:link.txt" not in inspection.available_texts(sources)

    @pytest.mark.parametrize(
        "source", ["local:none.txt", "builtin:none", "builtin:manuals-calibration", "cal_9", "local:deep"]
    )
    def test_unknown(self, sources, source):
        with pytest.raises(TextNotFound, match=r"here: builtin:manuals-test, local:notes\.txt\."):
            inspection.text_path(source, sources)

    def test_any_path_where_allowed(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("a")
        assert inspection.text_path(str(path), Sources(allow_paths=True)) == path.resolve()

    def test_txt_is_one_document(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_bytes("\ufefföne\n\ntwo\n".encode())
        assert inspection.read_texts(path) == ["öne\n\ntwo\n"]

    def test_jsonl_is_one_document_a_line(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "a\u2028b", "source": "x"}\r\n\n{"text": ""}\n{"text": "c"}', encoding="utf-8")
        assert inspection.read_texts(path) == ["a\u2028b", "c"]

    @pytest.mark.parametrize("name", ["a.csv", "a", "a.txt.gz"])
    def test_other_formats(self, tmp_path, name):
        (tmp_path / name).write_text("a")
        with pytest.raises(TextFormat, match=r"neither \.txt nor \.jsonl"):
            inspection.read_texts(tmp_path / name)

    @pytest.mark.parametrize(
        "line", ["{", "7", "[]", "{}", '{"text": 7}', '{"text": null}', '{"Text": "a"}', "[" * 100_000]
    )
    def test_bad_line_is_named(self, tmp_path, line):
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "a"}\n\n' + line)
        with pytest.raises(TextFormat, match=r"a\.jsonl, line 3: "):
            inspection.read_texts(path)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.txt", b"one\ntwo \xff"),
            ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}'),
            (
                "a.jsonl",
                rb"""{"text": "a"}
{"text": "\ud800"}""",
            ),
        ],
    )
    def test_not_utf8(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TextNotUtf8, match=rf"{name}, line 2: "):
            inspection.read_texts(tmp_path / name)

    @pytest.mark.parametrize(
        ("name", "content"), [("a.txt", ""), ("a.txt", " \n\t"), ("a.jsonl", ""), ("a.jsonl", '{"text": " "}\n\n')]
    )
    def test_empty(self, tmp_path, name, content):
        (tmp_path / name).write_text(content)
        with pytest.raises(TextEmpty, match=name):
            inspection.read_texts(tmp_path / name)

    def test_a_file_above_the_limit(self, sources):
        assert inspection.text_path("local:notes.txt", replace(sources, max_text_bytes=4)).name == "notes.txt"
        with pytest.raises(TextTooLarge, match=r"notes\.txt has 4 bytes; .* at most 3 ") as caught:
            inspection.text_path("local:notes.txt", replace(sources, max_text_bytes=3))
        assert caught.value.loc == ("source",)


class TestBeginning:
    """What is looked at before a job is taken: no more than the first bytes, however large the file is."""

    @pytest.mark.parametrize(
        ("name", "content", "error"),
        [
            ("a.csv", b"a", TextFormat),
            ("a.jsonl", b"{", TextFormat),
            ("a.txt", b"\xff", TextNotUtf8),
            ("a.txt", b" \n", TextEmpty),
            ("a.jsonl", b'{"text": " "}', TextEmpty),
        ],
    )
    def test_refuses_what_reading_would_refuse(self, tmp_path, name, content, error):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(error) as caught:
            inspection.read_texts(tmp_path / name)
        with pytest.raises(error, match=re.escape(str(caught.value))):
            inspection.check_beginning(tmp_path / name)

    def test_text_shorter_than_a_sequence(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("öö" + 14 * "x")  # 18 bytes, and two tokens that may be put around them
        inspection.check_beginning(path, 20)
        with pytest.raises(TextTooShort, match="18 bytes of text, too few for one sequence of 21 tokens"):
            inspection.check_beginning(path, 21)

    def test_every_document_may_have_tokens_around_it(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "a"}\n' * 10)
        inspection.check_beginning(path, 30)
        with pytest.raises(TextTooShort):
            inspection.check_beginning(path, 31)

    @pytest.mark.parametrize("end", ['{"text": "\xf6', "[]\n", " " * 50])
    def test_only_the_beginning_is_judged(self, tmp_path, end):
        path = tmp_path / "a.jsonl"
        line = '{"text": "a"}\n'
        path.write_text(line * 10 + end)
        inspection.check_beginning(path, 1000, beginning_bytes=10 * len(line))
        path.write_text("[]\n" + path.read_text())
        with pytest.raises(TextFormat, match="line 1"):
            inspection.check_beginning(path, 1000, beginning_bytes=10 * len(line))

    def test_a_line_longer_than_the_beginning_is_left_to_the_worker(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "' + "ö" * 100)
        inspection.check_beginning(path, beginning_bytes=50)

    def test_little_is_read_of_a_large_file(self, tmp_path):
        path = tmp_path / "a.txt"
        with path.open("wb") as file:
            file.write(b"a\n" * inspection.BEGINNING_BYTES)
            file.truncate(1 << 36)  # 64 GiB, all hole
        inspection.check_beginning(path, inspection.BEGINNING_BYTES)


@pytest.mark.parametrize(("limit", "length"), [(None, 2048), (256, 256), (2048, 2048), (131_072, 2048)])
def test_the_default_length_is_that_of_the_windows(limit, length):
    assert inspection.default_sequence_length(limit) == window_length(None, limit) == length
