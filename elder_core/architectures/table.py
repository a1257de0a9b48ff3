"""The supported architectures as data. Imports no torch.

A row says where a model keeps its decoder layers and which fields of its config speak of single layers. A new family
is a new row, and must pass the acceptance test that is run for every row; CONTRIBUTING.md says which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from elder_core.errors import UnsupportedArchitecture


@dataclass(frozen=True)
class Refusal:
    """A config in which `field` is set and true is refused, for `reason`."""

    field: str
    reason: str


COMMON_REFUSALS = (
    Refusal("is_encoder_decoder", "an encoder reads the decoder's layers; only decoder-only models are supported"),
    Refusal(
        "add_cross_attention", "cross-attention ties the layers to an encoder; only decoder-only models are supported"
    ),
    Refusal("per_layer_config", "its layers differ by settings that are kept by layer index"),
)

# Causal masks and rotation frequencies: old checkpoints hold them, loading ignores them, and they are not saved again.
RECOMPUTED = r"\.(attn|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$"


@dataclass(frozen=True)
class Architecture:
    """One family.

    `model_class` is the causal language model of the family in transformers, `stack` the attribute path from it to
    its `ModuleList` of decoder layers. The other fields name config fields as `config.json` writes them:
    `count` the number of layers, `hidden` the width, `positions` the longest sequence (None: no limit).
    `per_layer` are lists with one entry for each layer. `thresholds` are layer indices from which on layers differ.
    `writers` are the attribute paths, within a decoder layer, of the two matrices whose outputs, scaled by nothing, are
    added to the hidden state: attention's and, last, the MLP's. `plain_stream` are settings, and the values that they
    must have for that to be all that happens to it until the final norm.
    `refusals` are settings under which removing a layer would change the layers that stay. `obsolete` are patterns of
    tensors that old checkpoints hold and that mean nothing any more. `alike` says whether all layers hold tensors of
    the same names and shapes.
    """

    model_type: str
    model_class: str
    stack: str
    count: str = "num_hidden_layers"
    hidden: str = "hidden_size"
    positions: str | None = "max_position_embeddings"
    per_layer: tuple[str, ...] = ("layer_types",)
    writers: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    plain_stream: tuple[tuple[str, object], ...] = ()
    thresholds: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = COMMON_REFUSALS
    obsolete: tuple[str, ...] = ()
    alike: bool = True

    def keeps(self, tensor: str) -> bool:
        """Whether the tensor of that name is saved again; others are computed anew, or mean nothing any more."""
        return not any(re.search(pattern, tensor) for pattern in (*self.obsolete, RECOMPUTED))


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
            obsolete=(r"\.attn\.masked_bias$",),  # once the number that masked
        ),
        Architecture(
            "gpt_neox",
            "GPTNeoXForCausalLM",
            "gpt_neox.layers",
            writers=("attention.dense", "mlp.dense_4h_to_h"),
        ),
        Architecture(
            "opt",
            "OPTForCausalLM",
            "model.decoder.layers",
            writers=("self_attn.out_proj", "fc2"),
            plain_stream=(("do_layer_norm_before", True), ("_remove_final_layer_norm", False)),
        ),
    )
}


def find(model_type: str) -> Architecture:
    """The row of `model_type`, as a config's field of that name gives it.

    Raises:
        UnsupportedArchitecture: there is none; the message names those that there are.
    """
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        raise UnsupportedArchitecture(
            f"The architecture {model_type!r} is not supported. Supported: {', '.join(sorted(ARCHITECTURES))}.",
            loc=("model", "id"),
        ) from None


def check_settings(row: Architecture, settings: dict[str, object]) -> None:
    """Refuse a config, given as `field → value`, from which no layer can be removed.

    Raises:
        UnsupportedArchitecture: a field named in `row.refusals` is set.
    """
    for refusal in row.refusals:
        if settings.get(refusal.field):
            raise UnsupportedArchitecture(
                f"This {row.model_type} model cannot be pruned: its config sets {refusal.field}, and {refusal.reason}.",
                loc=("model", "id"),
            )
