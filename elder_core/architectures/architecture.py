"""What the table says of one family. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from elder_core.architectures.defaults import DEFAULTS
from elder_core.architectures.rules import Every, PerLayer, Rule, Settings, Threshold


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

# lists in configs that are never one entry for each layer, however many there are
NOT_OF_LAYERS = (
    *("architectures", "eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
    *("time_step_limit", "ssm_multipliers", "mlp_multipliers"),
    *("image_size", "patch_size", "temporal_patch_size", "vision_feature_layer"),
    # of layers that are not loaded
    *("mtp_layer_types", "mtp_mlp_layer_types", "mtp_layers_block_type", "mtp_local_layer_ids"),
)

# The kinds of layers that old files call otherwise: transformers renames them as it loads a config's layer_types.
KINDS = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}

# Settings that mean the same in every family whose files have them, whether or not transformers knows them there. It
# goes by the lists beside them; other programs (vLLM, MLX and others) often by these alone.
COMMON_RULES: tuple[Rule, ...] = (
    Threshold("first_k_dense_replace"),
    Threshold("max_window_layers"),
    Every("sliding_window_pattern", "layer_types", "full_attention"),
    Every("_sliding_window_pattern", "layer_types", "full_attention"),
    Every("full_attention_interval", "layer_types", "full_attention"),
    Every("global_attn_every_n_layers", "layer_types", "full_attention"),
    Every("layer_group_size", "layer_types", "full_attention"),
    Every("no_rope_layer_interval", "no_rope_layers", 0),
    Every("interleave_moe_layer_step", "moe_layers"),
)

# what files call the decoder layers of such a model
TEXT_STACKS = r"(?:model\.)?language_model\.(?:model|backbone)\.layers|model\.(?:language_model\.|text_model\.)?layers"

# Causal masks and rotation frequencies: old checkpoints hold them, loading ignores them, and they are not saved again.
RECOMPUTED = r"\.(attn|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$"


@dataclass(frozen=True)
class Spelled:
    """A word, `name`, that old files have instead of the list `of`: a letter for each layer, and what it stands for."""

    name: str
    of: str
    letters: tuple[tuple[str, str], ...]

    def kinds(self, word: str) -> list[str]:
        """The list; a letter that stands for nothing stays as it is."""
        return [dict(self.letters).get(letter, letter) for letter in word]

    def word(self, kinds: Sequence[str]) -> str:
        """The word for a list as transformers writes it."""
        letters = {kind: letter for letter, kind in self.letters}
        return "".join(letters[kind] for kind in kinds)


@dataclass(frozen=True)
class Architecture:
    """One family.

    `model_class` is the causal language model of the family in transformers, `stack` the attribute path from it to
    its `ModuleList` of decoder layers. The other fields name config fields as `config.json` writes them:
    `count` the number of layers, `hidden` the width, `positions` the longest sequence (None: no limit).
    `per_layer` are lists with one entry for each layer. `thresholds` are layer indices from which on layers differ.
    `rules` are the other settings that say by index what a layer is; those of COMMON_RULES need not be named.
    `first_authors` are rules of settings that transformers does not write but keeps where a file has them, as those of
    the family's first authors do; their own code, and other programs, read them.
    `writers` are the attribute paths, within a decoder layer, of the two matrices whose outputs, scaled by nothing, are
    added to the hidden state: attention's and, last, the MLP's; none where more or other things are added.
    `plain_stream` are settings, and the values that they must have for that to be all that happens to it until the
    final norm.
    `returns` is how many things a layer returns, the hidden state first; None: the hidden state alone, in no tuple.
    `head` is the output embedding's tensor in a checkpoint, and `tied` whether it is the input embedding's where the
    config does not say; `text_tied` is the same of the text part where that ties the whole model as well, None where it
    does not. `float32` are the names of tensors, or of modules around them, that are stored in float32 whatever the
    others are stored in; `float32_in_files` are patterns of those that files name otherwise.
    `refusals` are settings under which removing a layer would change the layers that stay. `not_loaded` are patterns of
    tensors that files hold and transformers does not load: what old versions computed with, and what predicts several
    tokens at once. `aliases` are other names that a config.json may have for the settings above, each with the setting.
    `listed` is the list whose length is the number of layers, where the config has no number of them; `spelled` the
    word that stands for it in old files, and is written again for those who read no list. `stacks` is a pattern of what
    files call the stack, where that is not its path in the model; names are saved as they are there.
    `text_type` is the family of the text part, where that is only a part of the model: all settings are those of the
    config's `text_config`, and tensors are saved by the names that they have in the source's files.
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
    rules: tuple[Rule, ...] = ()
    first_authors: tuple[Rule, ...] = ()
    refusals: tuple[Refusal, ...] = COMMON_REFUSALS
    not_loaded: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    listed: str | None = None
    spelled: Spelled | None = None
    stacks: str | None = None
    text_type: str | None = None
    returns: int | None = None
    head: str = "lm_head.weight"
    tied: bool = False
    text_tied: bool | None = None
    float32: tuple[str, ...] = ()
    float32_in_files: tuple[str, ...] = ()

    @property
    def alike(self) -> bool:
        """Whether all layers hold tensors of the same names and shapes, as far as the row tells."""
        return bool(self.writers) and not self.rules

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """The rules of all settings that speak of single layers."""
        lists, thresholds = map(PerLayer, self.per_layer), map(Threshold, self.thresholds)
        own: tuple[Rule, ...] = (*lists, *thresholds, *self.rules, *self.first_authors)
        names = {name for rule in own for name in rule.names}
        return (*own, *(rule for rule in COMMON_RULES if names.isdisjoint(rule.names)))

    def unknown_list(self, settings: Settings) -> str | None:
        """The name of a setting that has as many entries as there are layers, and no rule to say what they are."""
        known = {name for rule in self.all_rules for name in rule.names} | {*NOT_OF_LAYERS}
        count = self.layers(settings)
        lists = (name for name, value in settings.items() if isinstance(value, list | tuple) and len(value) == count)
        return next((name for name in lists if name not in known), None)

    def layers(self, settings: Settings) -> object:
        """The number of layers that a config has, as it says; None if it leaves that out."""
        entries = settings.get(self.listed) if self.listed else None
        return len(entries) if isinstance(entries, list | tuple) else settings.get(self.count)

    def for_old_readers(self, settings: Settings) -> dict[str, object]:
        """Of a config as transformers writes it, what else the authors' own code reads: see `spelled`."""
        if self.spelled is None:
            return {}
        kinds = settings[self.spelled.of]
        assert isinstance(kinds, list)
        return {self.count: len(kinds), self.spelled.name: self.spelled.word(kinds)}

    def keeps(self, tensor: str) -> bool:
        """Whether the tensor of that name is saved again; others are computed anew, or not loaded at all."""
        return not any(re.search(pattern, tensor) for pattern in (*self.not_loaded, RECOMPUTED))

    def place(self, tensor: str) -> tuple[str, int | None]:
        """What the tensor of that name in a file is saved as, with `{}` for the number of its layer; and that number.

        The base model's own checkpoints leave out the name that it has in the whole model.
        """
        if stacks := TEXT_STACKS if self.text_type else self.stacks:
            found = re.match(rf"({stacks})\.(\d+)\.(.+)", tensor)
            return (f"{found[1]}.{{}}.{found[3]}", int(found[2])) if found else (tensor, None)
        base, _, stack = self.stack.partition(".")
        if found := re.match(rf"(?:{base}\.)?{re.escape(stack)}\.(\d+)\.(.+)", tensor):
            return f"{self.stack}.{{}}.{found[2]}", int(found[1])
        head = self.head.rpartition(".")[0]
        return tensor if tensor.startswith((f"{base}.", f"{head}.")) else f"{base}.{tensor}", None

    def completed(self, settings: Settings) -> Settings:
        """A config as `config.json` has it, with what transformers would fill in as far as this row names it."""
        names = (self.count, self.hidden, *filter(None, [self.positions]))
        default = dict(zip(names, DEFAULTS.get(self.text_type or self.model_type, ()), strict=False))
        renamed = {name: settings[alias] for alias, name in self.aliases if alias in settings}
        found = {**default, **settings, **renamed}
        spelled = self.spelled
        if spelled and found.get(spelled.of) is None and isinstance(word := found.get(spelled.name), str):
            found[spelled.of] = spelled.kinds(word)
        for name in {"layer_types", *self.per_layer}:
            if isinstance(kinds := found.get(name), list):
                found[name] = [KINDS.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
        return {**found, self.count: self.layers(found)}

    def ties(self, whole: Settings, text: Settings) -> bool:
        """Whether the output embedding is the input embedding, by the config and that of the text part, if any."""
        name = "tie_word_embeddings"
        return bool(whole.get(name, self.tied) or (self.text_tied is not None and text.get(name, self.text_tied)))

    def keeps_float32(self, name: str) -> bool:
        """Whether the tensor `name` is stored in float32 whatever the others are stored in."""
        return any(re.search(rf"(^|\.){kept}($|\.)", name) for kept in (*self.float32, *self.float32_in_files))
