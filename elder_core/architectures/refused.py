"""What else transformers has that writes text, and why no layer of it can be removed."""

from __future__ import annotations

ENCODER = "it is an encoder that can also be run as a decoder; only models made as decoders are supported"
HALF = "it is the decoder of an encoder-decoder model, and an encoder reads or feeds its layers"
SENSES = "it reads or makes images or sound by layers that are not those of a language model"
DEEP = "what it sees is added after its first layers, found by their number"
HEARS = "it hears, and transformers loads it by another class than models that read text and images"
ACROSS = "its text part looks at images by attention of its own, in layers found by their number or in every layer"
EITHER = "its text part is a decoder or an encoder-decoder model, as a setting says"
SEVERAL = "it is several language models in one, of which one thinks and another speaks"
RENAMED = "transformers saves its layers by names that its published files do not have and others cannot read"
BLOCKS = (
    "its layers read what blocks of earlier layers added, found by their number, and its first layer alone reads none"
)
STREAMS = "its layers pass on several hidden states at once, mixed anew by each of them"
TIMM = "it sees by a network of the package timm, which is not installed where models are pruned"
CHANGED = (
    "its layers choose the earlier tokens that they read, and the whole model already writes otherwise with a cache"
)
PARTS = "it reads images or sound besides text; give its language model alone, whose model_type ends in _text"
PART = "it is the text part of a model that sees or hears, and transformers loads none by itself; give the whole model"
SKIPPED = "its layers that look at images are skipped where there is none, so that text cannot tell what they are worth"
SHARING = "its layers use the keys and values, or the choice of tokens, of an earlier layer, found by its number"

# model_type → why no layer can be removed; a class of transformers is in this table or in the other
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        [
            "bert",
            "bert-generation",
            "big_bird",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "flaubert",
            "xlm",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xlnet",
            "xmod",
            "reformer",
        ],
        ENCODER,
    ),
    **dict.fromkeys(
        [
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "marian",
            "mbart",
            "mvp",
            "pegasus",
            "plbart",
            "prophetnet",
            "trocr",
            "florence2",
            "t5gemma2",
            "t5gemma2_decoder",
            "udop",
            "vision-encoder-decoder",
            "pix2struct",
            "pix2struct_text_model",
            "whisper",
        ],
        HALF,
    ),
    **dict.fromkeys(
        [
            "emu3",
            "fuyu",
            "git",
            "moshi",
            "moss_transcribe_diarize",
            "musicgen",
            "musicgen_melody",
            "phi4_multimodal",
            "cosmos3_edge",
            "cosmos3_omni",
            "diffusion_gemma",
            "evolla",
            "pi0",
            "janus",
            "kosmos-2",
            "kosmos-2.5",
            "pp_formulanet",
            "chameleon",
            "clvp_decoder",
            "cohere_compass_text",
            "csm_depth_decoder_model",
            "musicgen_decoder",
            "musicgen_melody_decoder",
        ],
        SENSES,
    ),
    **dict.fromkeys(
        [
            "fun_asr_nano",
            "glmasr",
            "granite_speech",
            "granite_speech_plus",
            "kyutai_speech_to_text",
            "nemo_speechlm",
            "qwen2_audio",
            "qwen3_asr",
            "vibevoice_asr",
            "voxtral",
            "voxtral_realtime",
        ],
        HEARS,
    ),
    **dict.fromkeys(
        [
            "blip",
            "blip_text_model",
            "idefics",
        ],
        ACROSS,
    ),
    **dict.fromkeys(
        [
            "blip-2",
            "instructblip",
            "instructblipvideo",
        ],
        EITHER,
    ),
    **dict.fromkeys(
        [
            "qwen2_5_omni",
            "qwen3_omni_moe",
        ],
        SEVERAL,
    ),
    **dict.fromkeys(["fast_vlm", "perception_lm"], TIMM),
    **dict.fromkeys(["kimi_k25", "qianfan_ocr"], RENAMED),
    **dict.fromkeys(["llama4"], PARTS),
    **dict.fromkeys(
        [
            "qwen3_vl",
            "qwen3_vl_moe",
            "cohere_compass",
            "granite4_vision",
            "granite_docling",
            "qwen3_omni_moe_thinker",
        ],
        DEEP,
    ),
    **dict.fromkeys(
        ["dots3_note", "dots3_note_text", "step3p5", "step3p7"],
        "its layers differ by settings that are kept by layer index",
    ),
    **dict.fromkeys(
        [
            "gemma3n",
            "gemma3n_text",
            "gemma4",
            "gemma4_text",
            "gemma4_assistant",
            "gemma4_unified",
            "gemma4_unified_text",
            "gemma4_unified_assistant",
            "glm5_next",
            "glm_moe_dsa",
            "hy_v4",
            "mistral_large4",
        ],
        SHARING,
    ),
    **dict.fromkeys(["axk2", "deepseek_v32"], CHANGED),
    **dict.fromkeys(["inkling2", "inkling2_text"], BLOCKS),
    **dict.fromkeys(["deepseek_v4", "qwen4_exp", "qwen4_exp_text"], STREAMS),
    **dict.fromkeys(
        [
            "cosmos3_edge_text",
            "deepseek_ocr2_text",
            "diffusion_gemma_text",
            "emu3_text_model",
            "ernie4_5_vl_moe_text",
            "glm4v_moe_text",
            "glm4v_text",
            "glm5_next_text",
            "glm_ocr_text",
            "granite4_vision_text",
            "granite_docling_text",
            "hunyuan_vl_text",
            "kosmos_2_5_text_model",
            "kosmos_2_text_model",
            "mistral_large4_text",
            "molmo2_text",
            "muse_glimmer_text",
            "muse_spark_text",
            "paddleocr_vl_text",
            "pp_formulanet_text",
            "qwen2_5_omni_text",
            "qwen2_5_vl_text",
            "qwen2_vl_text",
            "qwen3_omni_moe_text",
            "qwen3_vl_moe_text",
            "qwen3_vl_text",
            "unlimited_ocr_text",
            "voxtral_realtime_text",
        ],
        PART,
    ),
    **dict.fromkeys(["mllama", "mllama_text_model"], SKIPPED),
    "inkling_mm_model": "it sees by a network that needs scipy, which is not installed where models are pruned; give "
    "its language model alone, an inkling_text",
    "mistral4": "transformers loads it alone by no class for language models; give the whole model, a mistral3",
    "molmo2": "which of its layers stretch positions is kept beside them, by their number, when the model is built",
    "unlimited_ocr": "it reads less of what it has written than of what it was given, which only its cache tells apart",
    "dbrx": "its experts cannot be computed in bfloat16 from a hidden state in float32, as training here does",
    "cpmant": "it puts tokens of its own before every text, so that its layers give more than the text's tokens",
    "beam": "each of its layers reads what chosen earlier layers added, found by their number",
    "blt": "it has three stacks of layers, for bytes and for patches of bytes",
    "diffllama": "each layer's attention is weighted by a number computed from its index",
    "ernie4_5_vl_moe": "transformers cannot write about an image without the cache, so that none can compare the two",
    "gpt_neox_japanese": "only its last layer has a bias after attention, so that no other layer can become the last",
    "hrm_text": "it runs its layers several times over, in two stacks",
    "longcat_flash": "each of its layers holds two attentions with places of their own in the cache",
    "minimax": "the decay of its linear attention is computed from the layer's index and the number of layers",
    "modernbert-decoder": "its first layer alone has no norm before attention, so that no other can become the first",
    "openai-gpt": "it keeps nothing between tokens, so that its generation cannot be measured as others' is",
    "rwkv": "its first layer alone has a norm before it, so that no other can become the first",
    "shieldgemma2": "it is a classifier of images, and what would be saved of it would be a model that writes instead",
    "xlstm": "its states are kept outside the caches that other models use",
    "zamba": "its attention layers share one block of weights, which is kept with one of them",
    "zamba2": "its attention layers share blocks of weights, which are kept with some of them",
    "zaya": "its layers pass a second state on to the next, and its first layer alone begins it",
}
