"""Removing decoder layers from a model in memory, and skipping them without removing them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any, cast

from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from elder_core.architectures import table
from elder_core.errors import DuplicateLayers, LayersOutOfRange, NoLayerLeft


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of decoder layers of a causal language model; changing it changes the model.

    Raises:
        UnsupportedArchitecture: the architecture is not in the table.
    """
    return cast("nn.ModuleList", attrgetter(table.find(model.config.model_type).stack)(model))


def layer_map(num_layers: int, removed: Collection[int]) -> dict[int, int]:
    """Index before → index after, for the layers that stay.

    Raises:
        LayersOutOfRange, DuplicateLayers, NoLayerLeft: `removed` does not fit a model of `num_layers`.
    """
    for layer in removed:
        if not 0 <= layer < num_layers:
            raise LayersOutOfRange(f"Layer {layer} does not exist: the model has layers 0 to {num_layers - 1}.")
    if len(set(removed)) != len(removed):
        raise DuplicateLayers(f"A layer is named twice in {sorted(removed)}.")
    if len(removed) == num_layers:
        raise NoLayerLeft(f"Removing {num_layers} of {num_layers} layers leaves none.")
    kept = (layer for layer in range(num_layers) if layer not in removed)
    return {old: new for new, old in enumerate(kept)}


def remove_layers(model: PreTrainedModel, removed: Collection[int]) -> dict[int, int]:
    """Remove layers from `model` in place; return the map from indices before to indices after.

    The config is right at once, so that generation with a cache works without saving and loading again. On an error
    the model is as it was.

    Raises:
        UnsupportedArchitecture: the architecture, or a setting of its config, does not allow it.
        LayersOutOfRange, DuplicateLayers, NoLayerLeft: `removed` does not fit the model.
    """
    row = table.find(model.config.model_type)
    table.check_settings(row, model.config.to_dict())
    stack = decoder_layers(model)
    mapping = layer_map(len(stack), removed)
    for layer in sorted(removed, reverse=True):
        del stack[layer]
    _renumber(stack)
    shorten_config(model.config, row, mapping)
    return mapping


def _renumber(stack: nn.ModuleList) -> None:
    """Give every module its layer's new index; the cache is addressed by it."""
    for index, layer in enumerate(stack):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index  # type: ignore[assignment]  # torch types it as Tensor | Module


def shorten_config(config: PreTrainedConfig, row: table.Architecture, mapping: Mapping[int, int]) -> None:
    """Make `config` that of the model whose layers `mapping` (index before → after) keeps.

    Raises:
        StrictDataclassError: the shorter config contradicts itself.
    """
    for name, value in shortened(config.to_dict(), row, mapping).items():
        setattr(config, name, value)
    config.validate()


def shortened(settings: Mapping[str, Any], row: table.Architecture, mapping: Mapping[int, int]) -> dict[str, Any]:
    """The fields of a config, given as `field → value`, that change with the layers that `mapping` keeps."""
    lists = {name: settings[name] for name in row.per_layer if settings.get(name) is not None}
    thresholds = {name: settings[name] for name in row.thresholds if settings.get(name) is not None}
    return {
        **{name: [entries[old] for old in mapping] for name, entries in lists.items()},
        **{name: sum(old < first for old in mapping) for name, first in thresholds.items()},
        row.count: len(mapping),
    }


@contextmanager
def bypassed(model: PreTrainedModel, layers: Collection[int]) -> Iterator[None]:
    """Make `layers` the identity, without computing them, until the context is left.

    Contexts may be nested. Hooks on the layers still run. A skipped layer never writes to the key-value cache, whose
    length would then be read wrongly, so the cache is off inside: `generate` recomputes the whole sequence for each
    token, and passing a cache on purpose is a mistake that is asserted against.

    Raises:
        UnsupportedArchitecture: the architecture is not in the table.
        LayersOutOfRange: a layer does not exist.
    """
    stack = decoder_layers(model)
    for index in layers:
        if not 0 <= index < len(stack):
            raise LayersOutOfRange(f"Layer {index} does not exist: the model has layers 0 to {len(stack) - 1}.")
    with _without_cache(model), ExitStack() as replaced:
        for index in set(layers):
            replaced.enter_context(_replaced_forward(stack[index]))
        yield


@contextmanager
def _replaced_forward(layer: nn.Module) -> Iterator[None]:
    before = layer.__dict__.get("forward")  # another replacement, where contexts are nested
    layer.__dict__["forward"] = _identity
    try:
        yield
    finally:
        del layer.__dict__["forward"]
        if before is not None:
            layer.__dict__["forward"] = before


def _identity(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stands for a layer's forward: `[batch, seq, hidden]` in and out."""
    assert not any(isinstance(argument, Cache) for argument in (*args, *kwargs.values())), (
        "no key-value cache while layers are bypassed"
    )
    return hidden_states


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    settings = [model.config, model.generation_config]
    before = [setting.use_cache for setting in settings]
    try:
        for setting in settings:
            setting.use_cache = False
        yield
    finally:
        for setting, use_cache in zip(settings, before, strict=True):
            setting.use_cache = use_cache
