"""The supported architectures as data. Imports no torch.

A row says where a model keeps its decoder layers and which fields of its config speak of single layers. A new family
is a new row; docs/add-an-architecture.md says how it is added and what it must pass. What transformers has besides is
in `refused.py`, each with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from elder_core.architectures.architecture import COMMON_REFUSALS, Architecture, Refusal, Spelled
from elder_core.architectures.refused import REFUSED
from elder_core.architectures.rules import (
    AtLeastOne,
    Changes,
    Cycle,
    Every,
    Indices,
    Inexpressible,
    Interval,
    Kept,
    OverRootOfDepth,
    Period,
    PerLayer,
    Runs,
    Settings,
    Step,
    Threshold,
    Within,
)
from elder_core.errors import UnsupportedArchitecture

TEXT = "text_config"  # where the config of a model that sees as well keeps its text part's

# how many layers for predicting several tokens at once there are, which are not loaded; those that the first of these
# counts are kept after the others, as if they were more of them
APPENDED = "num_nextn_predict_layers"
PREDICTORS = (APPENDED, "mtp_num_hidden_layers", "num_mtp_layers")

GPT = (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"), ("max_position_embeddings", "n_positions"))

MLPS = "mlp_layer_types"

CACHE = "generating with a cache needs one layer with attention at least"


ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("llama", "LlamaForCausalLM", "model.layers"),
        Architecture("mistral", "MistralForCausalLM", "model.layers"),
        Architecture("qwen2", "Qwen2ForCausalLM", "model.layers", thresholds=("max_window_layers",)),
        Architecture("qwen3", "Qwen3ForCausalLM", "model.layers", thresholds=("max_window_layers",)),
        Architecture(
            "gpt2",
            "GPT2LMHeadModel",
            "transformer.h",
            count="n_layer",
            hidden="n_embd",
            positions="n_positions",
            writers=("attn.c_proj", "mlp.c_proj"),
            refusals=(
                *COMMON_REFUSALS,
                Refusal(
                    "scale_attn_by_inverse_layer_idx",
                    "attention is divided by the layer's index, which removal changes",
                ),
            ),
            tied=True,
            not_loaded=(r"\.attn\.masked_bias$",),  # once the number that masked,
            aliases=GPT,
        ),
        Architecture(
            "gpt_neox",
            "GPTNeoXForCausalLM",
            "gpt_neox.layers",
            writers=("attention.dense", "mlp.dense_4h_to_h"),
            head="embed_out.weight",
        ),
        Architecture(
            "opt",
            "OPTForCausalLM",
            "model.decoder.layers",
            writers=("self_attn.out_proj", "fc2"),
            plain_stream=(("do_layer_norm_before", True), ("_remove_final_layer_norm", False)),
            tied=True,
        ),
        Architecture(
            "afmoe",
            "AfmoeForCausalLM",
            "model.layers",
            thresholds=("num_dense_layers",),
            writers=(),
        ),
        Architecture("apertus", "ApertusForCausalLM", "model.layers"),
        Architecture("arcee", "ArceeForCausalLM", "model.layers"),
        Architecture("aria_text", "AriaTextForCausalLM", "model.layers", writers=()),
        Architecture(
            "axk1",
            "AXK1ForCausalLM",
            "model.layers",
            per_layer=("layer_types", "mlp_layer_types"),
            writers=(),
            float32=("e_score_correction_bias",),
            not_loaded=(r"mlp\.post_mlp_layernorm",),
        ),
        Architecture(
            "bailing_hybrid",
            "BailingHybridForCausalLM",
            "model.layers",
            positions=None,
            per_layer=("layer_types", "mlp_layer_types"),
            thresholds=("first_k_dense_replace",),
            rules=(AtLeastOne("layer_types", "full_attention", CACHE),),
            writers=(),
            float32=("e_score_correction_bias", "conv1d", "dt_bias", "A_log"),
            float32_in_files=("expert_bias", "[kqv]_conv1d"),
        ),
        Architecture(
            "bamba",
            "BambaForCausalLM",
            "model.layers",
            returns=2,
            rules=(Indices("attn_layer_indices", CACHE),),
            writers=(),
        ),
        Architecture(
            "biogpt",
            "BioGptForCausalLM",
            "biogpt.layers",
            writers=("self_attn.out_proj", "fc2"),
            head="output_projection.weight",
            tied=True,
        ),
        Architecture("bitnet", "BitNetForCausalLM", "model.layers"),
        Architecture(
            "bloom",
            "BloomForCausalLM",
            "transformer.h",
            plain_stream=(("apply_residual_connection_post_layernorm", False),),
            count="n_layer",
            positions=None,
            returns=2,
            writers=("self_attention.dense", "mlp.dense_4h_to_h"),
            tied=True,
            aliases=(("num_hidden_layers", "n_layer"), ("n_embed", "hidden_size")),
        ),
        Architecture(
            "codegen",
            "CodeGenForCausalLM",
            "transformer.h",
            count="n_layer",
            hidden="n_embd",
            positions="n_positions",
            returns=2,
            writers=("attn.out_proj", "mlp.fc_out"),
            aliases=GPT,
        ),
        Architecture("cohere", "CohereForCausalLM", "model.layers", tied=True),
        Architecture("cohere2", "Cohere2ForCausalLM", "model.layers", tied=True),
        Architecture(
            "cohere2_moe",
            "Cohere2MoeForCausalLM",
            "model.layers",
            per_layer=("layer_types", "mlp_layer_types"),
            rules=(
                Kept("prefix_dense_sliding_window_pattern"),  # if 1, dense layers turn their queries by position
                Every("sliding_window_pattern", "layer_types", "full_attention", (MLPS, "sparse")),
            ),
            writers=(),
            tied=True,
        ),
        Architecture(
            "ctrl",
            "CTRLLMHeadModel",
            "transformer.h",
            count="n_layer",
            hidden="n_embd",
            positions="n_positions",
            writers=(),
            tied=True,
            aliases=GPT,
        ),
        Architecture("cwm", "CwmForCausalLM", "model.layers"),
        Architecture(
            "deepseek_v2", "DeepseekV2ForCausalLM", "model.layers", thresholds=("first_k_dense_replace",), writers=()
        ),
        Architecture(
            "deepseek_v3",
            "DeepseekV3ForCausalLM",
            "model.layers",
            thresholds=("first_k_dense_replace",),
            writers=(),
            float32=("e_score_correction_bias",),
        ),
        Architecture("doge", "DogeForCausalLM", "model.layers", writers=()),
        Architecture(
            "dots1",
            "Dots1ForCausalLM",
            "model.layers",
            thresholds=("first_k_dense_replace", "max_window_layers"),
            writers=(),
            float32=("e_score_correction_bias",),
        ),
        Architecture("ernie4_5", "Ernie4_5ForCausalLM", "model.layers", tied=True),
        Architecture(
            "ernie4_5_moe",
            "Ernie4_5_MoeForCausalLM",
            "model.layers",
            rules=(Interval("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval", "experts"),),
            writers=(),
            float32=("gate.weight", "moe_statics"),
            tied=True,
            not_loaded=("mtp",),
        ),
        Architecture("exaone4", "Exaone4ForCausalLM", "model.layers", writers=()),
        Architecture(
            "exaone_moe",
            "ExaoneMoeForCausalLM",
            "model.layers",
            per_layer=("layer_types", "mlp_layer_types"),
            thresholds=("first_k_dense_replace",),
            writers=(),
            float32=("e_score_correction_bias",),
            not_loaded=("mtp.*",),
        ),
        Architecture(
            "falcon",
            "FalconForCausalLM",
            "transformer.h",
            positions=None,
            returns=2,
            writers=("self_attention.dense", "mlp.dense_4h_to_h"),
            tied=True,
            aliases=(("n_embed", "hidden_size"),),
        ),
        Architecture("falcon_h1", "FalconH1ForCausalLM", "model.layers", returns=1, writers=()),
        Architecture(
            "falcon_mamba", "FalconMambaForCausalLM", "backbone.layers", positions=None, writers=(), tied=True
        ),
        Architecture("flex_olmo", "FlexOlmoForCausalLM", "model.layers", writers=()),
        Architecture(
            "flint",
            "FlintForCausalLM",
            "model.layers",
            rules=(Step("decoder_sparse_step", "mlp_only_layers"),),
            writers=(),
            float32=("gate.weight", "sinks"),
            float32_in_files=("softmax_offset",),
        ),
        Architecture("gemma", "GemmaForCausalLM", "model.layers", tied=True),
        Architecture("gemma2", "Gemma2ForCausalLM", "model.layers", writers=(), tied=True),
        Architecture(
            "gemma3_text",
            "Gemma3ForCausalLM",
            "model.layers",
            writers=(),
            tied=True,
        ),
        Architecture("glm", "GlmForCausalLM", "model.layers"),
        Architecture("glm4", "Glm4ForCausalLM", "model.layers", writers=()),
        Architecture(
            "glm4_moe",
            "Glm4MoeForCausalLM",
            "model.layers",
            thresholds=("first_k_dense_replace",),
            writers=(),
            float32=("e_score_correction_bias",),
        ),
        Architecture(
            "glm4_moe_lite",
            "Glm4MoeLiteForCausalLM",
            "model.layers",
            per_layer=("layer_types", "mlp_layer_types"),
            writers=(),
            float32=("e_score_correction_bias",),
        ),
        Architecture(
            "gpt_bigcode",
            "GPTBigCodeForCausalLM",
            "transformer.h",
            count="n_layer",
            hidden="n_embd",
            positions="n_positions",
            writers=("attn.c_proj", "mlp.c_proj"),
            tied=True,
            aliases=GPT,
        ),
        Architecture(
            "gpt_neo",
            "GPTNeoForCausalLM",
            "transformer.h",
            count="num_layers",
            per_layer=("attention_layers",),
            rules=(Runs("attention_types"),),
            returns=2,
            writers=("attn.attention.out_proj", "mlp.c_proj"),
            tied=True,
        ),
        Architecture("gpt_oss", "GptOssForCausalLM", "model.layers", writers=()),
        Architecture(
            "gptj",
            "GPTJForCausalLM",
            "transformer.h",
            count="n_layer",
            hidden="n_embd",
            positions="n_positions",
            returns=2,
            writers=("attn.out_proj", "mlp.fc_out"),
            aliases=GPT,
        ),
        Architecture("granite", "GraniteForCausalLM", "model.layers", writers=()),
        Architecture(
            "granite_swa",
            "GraniteSWAForCausalLM",
            "model.layers",
            per_layer=("layer_types", "layer_rope_theta"),
            writers=(),
            tied=True,
        ),
        Architecture("granitemoe", "GraniteMoeForCausalLM", "model.layers", writers=()),
        Architecture(
            "granitemoe_swa",
            "GraniteMoeSWAForCausalLM",
            "model.layers",
            per_layer=("layer_types", "layer_rope_theta"),
            writers=(),
        ),
        Architecture(
            "granitemoehybrid",
            "GraniteMoeHybridForCausalLM",
            "model.layers",
            rules=(AtLeastOne("layer_types", "full_attention", CACHE),),
            writers=(),
        ),
        Architecture("granitemoeshared", "GraniteMoeSharedForCausalLM", "model.layers", writers=()),
        Architecture("helium", "HeliumForCausalLM", "model.layers"),
        Architecture("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", "model.layers", writers=()),
        Architecture(
            "hunyuan_v1_moe",
            "HunYuanMoEV1ForCausalLM",
            "model.layers",
            per_layer=("layer_types", "moe_topk"),
            first_authors=(PerLayer("num_shared_expert"), PerLayer("moe_intermediate_size")),
            writers=(),
        ),
        Architecture(
            "hy_v3",
            "HYV3ForCausalLM",
            "model.layers",
            per_layer=("layer_types", "mlp_layer_types"),
            writers=(),
            float32=("e_score_correction_bias",),
            float32_in_files=("expert_bias",),
        ),
        Architecture("hyperclovax", "HyperCLOVAXForCausalLM", "model.layers", writers=()),
        Architecture(
            "inkling_text",
            "InklingForCausalLM",
            "model.layers",
            per_layer=("layer_types", MLPS),
            rules=(Indices("local_layer_ids"),),
            first_authors=(Threshold("dense_mlp_idx"),),
            writers=(),
            float32=(
                *("attn_sconv", "mlp_sconv", "k_sconv", "v_sconv"),
                *("e_score_correction_bias", "gate.global_scale"),
            ),
            not_loaded=(r"model\.mtp\..*",),
            aliases=(("model_max_length", "max_position_embeddings"),),
        ),
        Architecture("internlm3", "LlamaForCausalLM", "model.layers"),
        Architecture("iquestcoder", "LlamaForCausalLM", "model.layers"),
        Architecture("jais2", "Jais2ForCausalLM", "model.layers"),
        Architecture(
            "jamba",
            "JambaForCausalLM",
            "model.layers",
            rules=(
                Period("attn_layer_period", "attn_layer_offset", "attention", CACHE),
                Period("expert_layer_period", "expert_layer_offset", "experts"),
            ),
            writers=(),
        ),
        Architecture("jetmoe", "JetMoeForCausalLM", "model.layers", writers=(), tied=True),
        Architecture(
            "kimi_linear",
            "KimiLinearForCausalLM",
            "model.layers",
            positions="model_max_length",
            per_layer=("layer_types", "mlp_layer_types"),
            rules=(AtLeastOne("layer_types", "full_attention", CACHE),),
            first_authors=(
                Within("linear_attn_config", (Indices("full_attn_layers", first=1), Indices("kda_layers", first=1))),
            ),
            writers=(),
            aliases=(("max_position_embeddings", "model_max_length"),),
        ),
        Architecture(
            "kolibri1",
            "Kolibri1ForCausalLM",
            "model.layers",
            writers=(),
            float32=("e_score_correction_bias",),
            float32_in_files=("expert_bias",),
        ),
        Architecture(
            "laguna",
            "LagunaForCausalLM",
            "model.layers",
            per_layer=("layer_types", "mlp_layer_types", "num_attention_heads_per_layer"),
            writers=(),
        ),
        Architecture(
            "lfm2",
            "Lfm2ForCausalLM",
            "model.layers",
            rules=(AtLeastOne("layer_types", "full_attention", CACHE), Indices("full_attn_idxs")),
            writers=(),
            tied=True,
        ),
        Architecture(
            "lfm2_moe",
            "Lfm2MoeForCausalLM",
            "model.layers",
            thresholds=("num_dense_layers",),
            rules=(AtLeastOne("layer_types", "full_attention", CACHE),),
            writers=(),
            tied=True,
        ),
        Architecture(
            "lfm3",
            "Lfm3ForCausalLM",
            "model.layers",
            rules=(AtLeastOne("layer_types", "full_attention", CACHE),),
            writers=(),
            tied=True,
        ),
        Architecture(
            "llama4_text",
            "Llama4ForCausalLM",
            "model.layers",
            per_layer=("layer_types", "no_rope_layers"),
            rules=(Indices("moe_layers"),),
            writers=(),
        ),
        Architecture("mamba", "MambaForCausalLM", "backbone.layers", positions=None, writers=(), tied=True),
        Architecture("mamba2", "Mamba2ForCausalLM", "backbone.layers", positions=None, writers=()),
        Architecture(
            "mellum",
            "MellumForCausalLM",
            "model.layers",
            per_layer=("layer_types", "mlp_layer_types"),
            writers=(),
            not_loaded=(r"^mtp\.",),
        ),
        Architecture(
            "mimo_v2_flash",
            "MiMoV2FlashForCausalLM",
            "model.layers",
            per_layer=("layer_types", "mlp_layer_types"),
            first_authors=(PerLayer("hybrid_layer_pattern"), PerLayer("moe_layer_freq")),
            writers=(),
            float32=("e_score_correction_bias",),
            not_loaded=(r"^model\.mtp\.",),
        ),
        Architecture(
            "minicpm3",
            "MiniCPM3ForCausalLM",
            "model.layers",
            rules=(OverRootOfDepth("scale_depth"),),
            writers=(),
            tied=True,
        ),
        Architecture("minimax_m2", "MiniMaxM2ForCausalLM", "model.layers", writers=()),
        Architecture(
            "minimax_m3_vl_text",
            "MiniMaxM3VLForCausalLM",
            "model.layers",
            per_layer=("layer_types", MLPS),
            first_authors=(PerLayer("moe_layer_freq"),),
            writers=(),
            not_loaded=(r"(^|\.)mtp\..*",),
        ),
        Architecture("ministral", "MinistralForCausalLM", "model.layers"),
        Architecture("ministral3", "Ministral3ForCausalLM", "model.layers"),
        Architecture("mixtral", "MixtralForCausalLM", "model.layers", writers=()),
        Architecture(
            "mpt",
            "MptForCausalLM",
            "transformer.blocks",
            count="n_layers",
            hidden="d_model",
            positions="max_seq_len",
            returns=2,
            writers=("attn.out_proj", "ffn.down_proj"),
            tied=True,
            aliases=(("num_hidden_layers", "n_layers"), ("hidden_size", "d_model")),
        ),
        Architecture("nanochat", "NanoChatForCausalLM", "model.layers", writers=()),
        Architecture("nemotron", "NemotronForCausalLM", "model.layers"),
        Architecture(
            "nemotron_h",
            "NemotronHForCausalLM",
            "model.layers",
            per_layer=("layers_block_type",),
            rules=(AtLeastOne("layers_block_type", "full_attention", CACHE),),
            writers=(),
            float32=("e_score_correction_bias",),
            not_loaded=("mtp.*",),
            aliases=(("layer_types", "layers_block_type"),),
            listed="layers_block_type",
            spelled=Spelled(
                "hybrid_override_pattern",
                "layers_block_type",
                (("M", "linear_attention"), ("E", "moe"), ("*", "full_attention"), ("-", "mlp")),
            ),
            stacks=r"(?:backbone|model)\.layers",
        ),
        Architecture("olmo", "OlmoForCausalLM", "model.layers"),
        Architecture("olmo2", "Olmo2ForCausalLM", "model.layers", writers=()),
        Architecture("olmo3", "Olmo3ForCausalLM", "model.layers", writers=()),
        Architecture(
            "olmo_hybrid",
            "OlmoHybridForCausalLM",
            "model.layers",
            rules=(
                AtLeastOne("layer_types", "full_attention", CACHE),
                AtLeastOne("layer_types", "linear_attention", "its config does not allow that"),
            ),
            writers=(),
            not_loaded=("^mtp.*",),
        ),
        Architecture("olmoe", "OlmoeForCausalLM", "model.layers", writers=()),
        Architecture(
            "persimmon", "PersimmonForCausalLM", "model.layers", writers=("self_attn.dense", "mlp.dense_4h_to_h")
        ),
        Architecture("phi", "PhiForCausalLM", "model.layers", writers=("self_attn.dense", "mlp.fc2")),
        Architecture("phi3", "Phi3ForCausalLM", "model.layers"),
        Architecture("phimoe", "PhimoeForCausalLM", "model.layers", writers=()),
        Architecture(
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            "model.layers",
            thresholds=("max_window_layers",),
            rules=(Step("decoder_sparse_step", "mlp_only_layers"),),
            writers=(),
        ),
        Architecture(
            "qwen3_5_moe_text",
            "Qwen3_5MoeForCausalLM",
            "model.layers",
            rules=(AtLeastOne("layer_types", "full_attention", CACHE),),
            writers=(),
            not_loaded=("^mtp.*", "^model.visual.*"),
        ),
        Architecture(
            "qwen3_5_text",
            "Qwen3_5ForCausalLM",
            "model.layers",
            rules=(AtLeastOne("layer_types", "full_attention", CACHE),),
            writers=(),
            not_loaded=("^mtp.*", "^model.visual.*"),
        ),
        Architecture(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            "model.layers",
            rules=(Step("decoder_sparse_step", "mlp_only_layers"),),
            writers=(),
        ),
        Architecture(
            "qwen3_next",
            "Qwen3NextForCausalLM",
            "model.layers",
            rules=(
                AtLeastOne("layer_types", "full_attention", CACHE),
                Step("decoder_sparse_step", "mlp_only_layers"),
            ),
            writers=(),
            not_loaded=("^mtp.*",),
        ),
        Architecture(
            "recurrent_gemma",
            "RecurrentGemmaForCausalLM",
            "model.layers",
            positions=None,
            per_layer=(),
            rules=(AtLeastOne("block_types", "attention", CACHE), Cycle("block_types")),
            first_authors=(Cycle("_block_types"),),
            writers=(),
            tied=True,
        ),
        Architecture("seed_oss", "SeedOssForCausalLM", "model.layers"),
        Architecture(
            "smollm3",
            "SmolLM3ForCausalLM",
            "model.layers",
            per_layer=("layer_types", "no_rope_layers"),
            tied=True,
        ),
        Architecture(
            "solar_open", "SolarOpenForCausalLM", "model.layers", writers=(), float32=("e_score_correction_bias",)
        ),
        Architecture("stablelm", "StableLmForCausalLM", "model.layers"),
        Architecture(
            "starcoder2", "Starcoder2ForCausalLM", "model.layers", writers=("self_attn.o_proj", "mlp.c_proj"), tied=True
        ),
        Architecture("vaultgemma", "VaultGemmaForCausalLM", "model.layers", writers=(), tied=True),
        Architecture(
            "xglm",
            "XGLMForCausalLM",
            "model.layers",
            count="num_layers",
            hidden="d_model",
            writers=("self_attn.out_proj", "fc2"),
            tied=True,
            aliases=(("num_hidden_layers", "num_layers"), ("hidden_size", "d_model")),
        ),
        Architecture("youtu", "YoutuForCausalLM", "model.layers", writers=(), tied=True),
    )
}

# text parts that transformers has in no causal language model
TEXT_PARTS: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture(
            "glm4v_moe_text",
            "Glm4vMoeTextModel",
            "layers",
            thresholds=("first_k_dense_replace",),
            writers=(),
            float32=("e_score_correction_bias",),
        ),
        Architecture("glm4v_text", "Glm4vTextModel", "layers", writers=()),
        Architecture("glm_ocr_text", "GlmOcrTextModel", "layers", writers=()),
        Architecture("hunyuan_vl_text", "HunYuanVLTextModel", "layers", writers=(), tied=True),
        Architecture(
            "deepseek_ocr2_text", "DeepseekOcr2TextModel", "layers", per_layer=("layer_types", MLPS), writers=()
        ),
        Architecture("mistral4", "Mistral4Model", "layers", thresholds=("first_k_dense_replace",), writers=()),
        Architecture(
            "muse_glimmer_text",
            "MuseGlimmerTextModel",
            "layers",
            per_layer=("layer_types", "layer_rope_theta"),
            writers=(),
        ),
        Architecture(
            "muse_spark_text",
            "MuseSparkTextModel",
            "layers",
            per_layer=("layer_types", "layer_rope_theta", MLPS),
            writers=(),
            float32=(
                *("post_attention_residual_gate", "post_feedforward_residual_gate"),
                *("mlp.gate.weight", "e_score_correction_bias"),
            ),
        ),
        Architecture("paddleocr_vl_text", "PaddleOCRTextModel", "layers", tied=True),
        Architecture(
            "qwen2_5_omni_text", "Qwen2_5OmniThinkerTextModel", "layers", thresholds=("max_window_layers",), tied=True
        ),
        Architecture("qwen2_vl_text", "Qwen2VLTextModel", "layers", thresholds=("max_window_layers",)),
        Architecture("qwen2_5_vl_text", "Qwen2_5_VLTextModel", "layers", thresholds=("max_window_layers",)),
    )
}
LANGUAGE = "model.language_model.layers"
BOTH_WAYS = "it reads a text alone in both directions, so that its layers cannot be chosen nor judged by how it writes"
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "internlm3")


@dataclass(frozen=True)
class Multimodal:
    """A family that reads images besides text, around a model of one of the families `texts`; the first is the default.

    What sees is left as it is; layers are removed from the text part. `stack`, `tied` and `not_loaded` (None: that of
    the text part) are as in Architecture; `text_ties`: embeddings are tied as well where the config of the text part
    has them tied. `refused` are families of text parts that it may have and that cannot be pruned there, each with the
    reason. `released_text` is what released files call `text_config`, where that is another name.
    """

    model_type: str
    model_class: str
    texts: tuple[str, ...]
    stack: str = LANGUAGE
    tied: bool = False
    text_ties: bool = False
    not_loaded: tuple[str, ...] | None = None
    refused: tuple[tuple[str, str], ...] = ()
    released_text: str | None = None

    def around(self, text_type: str | None) -> Architecture:
        """The row of the whole model.

        Raises:
            UnsupportedArchitecture: its text part is of another family than `texts`.
        """
        text_type = text_type or self.texts[0]
        if text_type in (reasons := dict(self.refused)):
            raise UnsupportedArchitecture(
                f"Models of the architecture {self.model_type!r} around one of {text_type!r} cannot be pruned: "
                f"{reasons[text_type]}.",
                loc=("model", "id"),
            )
        if text_type not in self.texts:
            raise UnsupportedArchitecture(
                f"The text part of this {self.model_type} model is of the architecture {text_type!r}; those that are "
                f"supported there are {', '.join(self.texts)}.",
                loc=("model", "id"),
            )
        row = {**ARCHITECTURES, **TEXT_PARTS}[text_type]
        return replace(
            row,
            model_type=self.model_type,
            model_class=self.model_class,
            stack=self.stack,
            tied=self.tied,
            text_tied=row.tied if self.text_ties else None,
            head="lm_head.weight",
            not_loaded=row.not_loaded if self.not_loaded is None else self.not_loaded,
            text_type=text_type,
        )


MULTIMODAL: dict[str, Multimodal] = {
    row.model_type: row
    for row in (
        Multimodal("aria", "AriaForConditionalGeneration", ("aria_text",)),
        Multimodal("aya_vision", "AyaVisionForConditionalGeneration", ("cohere2", "cohere"), tied=True),
        Multimodal("cohere2_vision", "Cohere2VisionForConditionalGeneration", ("cohere2",), tied=True),
        Multimodal("deepseek_ocr2", "DeepseekOcr2ForConditionalGeneration", ("deepseek_ocr2_text",)),
        Multimodal("deepseek_vl", "DeepseekVLForConditionalGeneration", ("llama",), tied=True),
        Multimodal("deepseek_vl_hybrid", "DeepseekVLHybridForConditionalGeneration", ("llama",), tied=True),
        Multimodal("exaone4_5", "Exaone4_5_ForConditionalGeneration", ("exaone4",), not_loaded=("mtp.*",)),
        Multimodal("gemma3", "Gemma3ForConditionalGeneration", ("gemma3_text",), tied=True),
        Multimodal("glm46v", "Glm46VForConditionalGeneration", ("glm4v_text",)),
        Multimodal("glm4v", "Glm4vForConditionalGeneration", ("glm4v_text",), text_ties=True),
        Multimodal("glm4v_moe", "Glm4vMoeForConditionalGeneration", ("glm4v_moe_text",), text_ties=True),
        Multimodal("glm_ocr", "GlmOcrForConditionalGeneration", ("glm_ocr_text",), text_ties=True),
        Multimodal("glmga", "Glm46VForConditionalGeneration", ("glm4v_text",)),
        Multimodal("got_ocr2", "GotOcr2ForConditionalGeneration", ("qwen2",), tied=True),
        Multimodal("hunyuan_vl", "HunYuanVLForConditionalGeneration", ("hunyuan_vl_text",), tied=True, text_ties=True),
        Multimodal("hyperclovax_vision_v2", "HyperCLOVAXVisionV2ForConditionalGeneration", ("hyperclovax",), tied=True),
        Multimodal("idefics2", "Idefics2ForConditionalGeneration", ("mistral",), stack="model.text_model.layers"),
        Multimodal("idefics3", "Idefics3ForConditionalGeneration", LLAMAS, stack="model.text_model.layers"),
        Multimodal("internvl", "InternVLForConditionalGeneration", tuple(dict.fromkeys(("qwen2", *LLAMAS))), tied=True),
        Multimodal("lfm2_vl", "Lfm2VlForConditionalGeneration", ("lfm2",), tied=True),
        Multimodal("lfm3_vl", "Lfm3VlForConditionalGeneration", ("lfm3",), tied=True),
        Multimodal("lighton_ocr", "LightOnOcrForConditionalGeneration", ("qwen3",), tied=True),
        Multimodal("llava", "LlavaForConditionalGeneration", LLAMAS, text_ties=True),
        Multimodal("llava_next", "LlavaNextForConditionalGeneration", LLAMAS),
        Multimodal(
            "llava_next_video", "LlavaNextVideoForConditionalGeneration", ("llama", "mistral", "qwen2"), text_ties=True
        ),
        Multimodal("llava_onevision", "LlavaOnevisionForConditionalGeneration", ("qwen2", "qwen3"), text_ties=True),
        Multimodal("minicpm_ocr", "MiniCPMOcrForConditionalGeneration", ("qwen3_5_text",), tied=True),
        Multimodal("minicpmv4_6", "MiniCPMV4_6ForConditionalGeneration", ("qwen3_5_text",)),
        Multimodal("minicpmv4_7", "MiniCPMV4_7ForConditionalGeneration", ("qwen3_5_text",)),
        Multimodal("minimax_m3_vl", "MiniMaxM3SparseForConditionalGeneration", ("minimax_m3_vl_text",), text_ties=True),
        Multimodal("mistral3", "Mistral3ForConditionalGeneration", ("mistral", "ministral3", "mistral4"), tied=True),
        Multimodal("muse_glimmer", "MuseGlimmerForConditionalGeneration", ("muse_glimmer_text",)),
        Multimodal("muse_spark", "MuseSparkForConditionalGeneration", ("muse_spark_text",)),
        Multimodal(
            "nemotron_h_omni",
            "NemotronH_Omni_Reasoning_V3",
            ("nemotron_h",),
            stack="language_model.model.layers",
            not_loaded=(r"audio_tower\.feature_extractor\.", "mtp.*"),
            released_text="llm_config",
        ),
        Multimodal("ovis2", "Ovis2ForConditionalGeneration", ("qwen2",), tied=True),
        Multimodal(
            "paddleocr_vl",
            "PaddleOCRVLForConditionalGeneration",
            ("paddleocr_vl_text",),
            tied=True,
            text_ties=True,
            not_loaded=("packing_position_embedding", "vision_model.head"),
        ),
        Multimodal(
            "paligemma", "PaliGemmaForConditionalGeneration", ("gemma2",), tied=True, refused=(("gemma", BOTH_WAYS),)
        ),
        Multimodal("pp_chart2table", "GotOcr2ForConditionalGeneration", ("qwen2",), tied=True),
        Multimodal(
            "qwen2_5_omni_thinker",
            "Qwen2_5OmniThinkerForConditionalGeneration",
            ("qwen2_5_omni_text",),
            not_loaded=("^talker", "^token2wav"),
        ),
        Multimodal("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", ("qwen2_5_vl_text",), text_ties=True),
        Multimodal("qwen2_vl", "Qwen2VLForConditionalGeneration", ("qwen2_vl_text",), text_ties=True),
        Multimodal("qwen3_5", "Qwen3_5ForConditionalGeneration", ("qwen3_5_text",), not_loaded=("^mtp.*",)),
        Multimodal("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", ("qwen3_5_moe_text",), not_loaded=("^mtp.*",)),
        Multimodal("smolvlm", "SmolVLMForConditionalGeneration", LLAMAS, stack="model.text_model.layers"),
        Multimodal("video_llama_3", "VideoLlama3ForConditionalGeneration", ("qwen2",), text_ties=True),
        Multimodal("video_llava", "VideoLlavaForConditionalGeneration", ("llama",)),
        Multimodal("vipllava", "VipLlavaForConditionalGeneration", ("llama",)),
    )
}


def find(model_type: str, text_type: str | None = None) -> Architecture:
    """The row of `model_type`, as a config's field of that name gives it; `text_type` is that of its text part, if any.

    Raises:
        UnsupportedArchitecture: there is none; the message says why, or names the nearest.
    """
    if model_type in REFUSED:
        raise UnsupportedArchitecture(
            f"Models of the architecture {model_type!r} cannot be pruned: {REFUSED[model_type]}.", loc=("model", "id")
        )
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    if model_type in MULTIMODAL:
        return MULTIMODAL[model_type].around(text_type)
    known = [*ARCHITECTURES, *MULTIMODAL]
    near = get_close_matches(model_type, known, n=3)
    raise UnsupportedArchitecture(
        f"The architecture {model_type!r} is not supported; docs/architectures.md lists the {len(known)} that "
        f"are.{' Nearest: ' * bool(near)}{', '.join(near)}{'.' * bool(near)}",
        loc=("model", "id"),
    )


def find_for(settings: Settings) -> Architecture:
    """The row of the model whose `config.json` holds `settings`.

    Raises:
        UnsupportedArchitecture: see find.
    """
    model_type = str(settings.get("model_type") or "none")
    part = _text_part(model_type, settings)
    return find(model_type, None if part is None else part.get("model_type"))


def text_settings(row: Architecture, settings: Settings) -> Settings:
    """Those of the text part: `settings` themselves where that is the whole model, or old files do not part them."""
    part = _text_part(row.model_type, settings)
    return settings if part is None else part


def _text_part(model_type: str, settings: Settings) -> dict[str, Any] | None:
    """The config of the text part, by the name that comes first; None where there is none of its own."""
    if model_type not in MULTIMODAL:
        return None
    names = filter(None, (TEXT, MULTIMODAL[model_type].released_text))
    return next((part for name in names if isinstance(part := settings.get(name), dict)), None)


def check_settings(row: Architecture, settings: Settings) -> None:
    """Refuse a config, given as `field → value`, from which no layer can be removed.

    Raises:
        UnsupportedArchitecture: a field named in `row.refusals` is set, or one that no rule covers has an entry for
            each layer.
    """
    if (name := row.unknown_list(settings)) is not None:
        raise UnsupportedArchitecture(
            f"This {row.model_type} model cannot be pruned: {name} in its config has as many entries as there are "
            f"layers, and it is not known what they say of them. If nothing reads {name}, take it out of config.json.",
            loc=("model", "id"),
        )
    for refusal in row.refusals:
        if settings.get(refusal.field):
            raise UnsupportedArchitecture(
                f"This {row.model_type} model cannot be pruned: its config sets {refusal.field}, and {refusal.reason}.",
                loc=("model", "id"),
            )


def changes(row: Architecture, settings: Settings, kept: Sequence[int]) -> Changes:
    """What changes in a config, given as `field → value`, once only the layers at the indices `kept` remain.

    Raises:
        UnsupportedArchitecture: the config has no words for what would remain.
    """
    count = row.layers(settings)
    assert isinstance(count, int)
    found: Changes = {row.count: len(kept)}
    found |= {name: 0 for name in PREDICTORS if settings.get(name)}
    for rule in row.all_rules:
        try:
            found |= rule.after(settings, kept, count)
        except Inexpressible as error:
            removed = sorted(set(range(count)) - set(kept))
            raise UnsupportedArchitecture(
                f"The layers {removed} cannot be removed together from this {row.model_type} model: {error}. "
                "Choose others.",
                loc=("layers",),
            ) from None
    return found
