"""Removing decoder layers from a model in memory, and skipping them without removing them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from operator import attrgetter
from typing import Any, cast

from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from elder_core.architectures import nearest, table
from elder_core.architectures.architecture import Architecture
from elder_core.architectures.rules import Changes
from elder_core.errors import DuplicateLayers, LayersOutOfRange, NoLayerLeft

INDEX_NAMES = ("layer_idx", "layer_id")


def row_of(model: PreTrainedModel) -> Architecture:
    """What the table says of `model`.

    Raises:
        UnsupportedArchitecture: it is not in the table.
    """
    return table.find(model.config.model_type, model.config.get_text_config().model_type)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of decoder layers of a causal language model; changing it changes the model.

    Raises:
        UnsupportedArchitecture: the architecture is not in the table.
    """
    return cast("nn.ModuleList", attrgetter(row_of(model).stack)(model))


def parameters_only_in(model: PreTrainedModel, layers: Collection[int]) -> list[nn.Parameter]:
    """The parameters of the decoder layers `layers` that nothing else in the model uses too."""
    stack = decoder_layers(model)
    stacks = [name for name, module in model.named_modules(remove_duplicate=False) if module is stack]
    prefixes = tuple(f"{name}.{layer}." for name in stacks for layer in layers)
    inside: dict[int, nn.Parameter] = {}
    elsewhere: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith(prefixes):
            inside[id(parameter)] = parameter
        else:
            elsewhere.add(id(parameter))
    return [parameter for key, parameter in inside.items() if key not in elsewhere]


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


def removal_changes(model: PreTrainedModel, removed: Collection[int]) -> Changes:
    """The settings of the config that change when layers are removed, and nothing changed yet.

    Raises:
        UnsupportedArchitecture, LayersOutOfRange, DuplicateLayers, NoLayerLeft: see remove_layers.
    """
    return config_changes(row_of(model), model.config, list(layer_map(len(decoder_layers(model)), removed)))


def config_changes(row: Architecture, config: PreTrainedConfig, kept: Sequence[int]) -> Changes:
    """The settings of `config` that change when only the layers `kept` stay; see apply_changes.

    Raises:
        UnsupportedArchitecture: a setting does not allow it, or there are no words for what would remain.
    """
    settings = config.get_text_config().to_dict()
    for part in (config.to_dict(), settings):
        table.check_settings(row, part)
    return table.changes(row, settings, kept)


def nearest_removable(
    model: PreTrainedModel, removed: Collection[int], weights: Sequence[float] | None = None
) -> tuple[int, ...] | None:
    """The set nearest to `removed` that the config has words to do without, by `weights`; see nearest.nearest.

    Raises:
        UnsupportedArchitecture: the architecture is not in the table.
    """
    return nearest.nearest(row_of(model), model.config.get_text_config().to_dict(), removed, weights)


def remove_layers(model: PreTrainedModel, removed: Collection[int]) -> dict[int, int]:
    """Remove layers from `model` in place; return the map from indices before to indices after.

    The config is right at once, so that generation with a cache works without saving and loading again. On an error
    the model is as it was.

    Raises:
        UnsupportedArchitecture: the architecture, or a setting of its config, does not allow it, or the config has
            no words for what would remain.
        LayersOutOfRange, DuplicateLayers, NoLayerLeft: `removed` does not fit the model.
        StrictDataclassError: the shorter config contradicts itself.
    """
    changes = removal_changes(model, removed)
    stack = decoder_layers(model)
    mapping = layer_map(len(stack), removed)
    apply_changes(copy.deepcopy(model.config), changes)  # if it raises, then while nothing has changed yet
    apply_changes(model.config, changes)
    for layer in sorted(removed, reverse=True):
        del stack[layer]
    _renumber(stack)
    return mapping


def _renumber(stack: nn.ModuleList) -> None:
    """Give every module its layer's new index; the cache is addressed by it."""
    for index, layer in enumerate(stack):
        for module, name in product(layer.modules(), INDEX_NAMES):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, index)


def apply_changes(config: PreTrainedConfig, changes: Changes) -> None:
    """Make `config` that of the model without some layers.

    Raises:
        StrictDataclassError: the shorter config contradicts itself.
    """
    part = config.get_text_config()
    for name, value in changes.items():
        if value is None:
            vars(part).pop(name, None)  # config.json has it no longer, nor a default that says something else
        else:
            setattr(part, name, value)
    config.validate()


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
    identity = _identity(row_of(model).returns)
    with _without_cache(model), ExitStack() as replaced:
        for index in set(layers):
            replaced.enter_context(_replaced_forward(stack[index], identity))
        yield


@contextmanager
def _replaced_forward(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = layer.__dict__.get("forward")  # another replacement, where contexts are nested
    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]
        if before is not None:
            layer.__dict__["forward"] = before


def _identity(returns: int | None) -> Callable[..., Any]:
    """Stands for a layer's forward: `[batch, seq, hidden]` in and out, in a tuple of `returns` unless that is None."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        assert not any(isinstance(argument, Cache) for argument in (*args, *kwargs.values())), (
            "no key-value cache while layers are bypassed"
        )
        return hidden_states if returns is None else (hidden_states, *[None] * (returns - 1))

    return forward


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    all_there_are = (model.config, model.config.get_text_config(), model.generation_config)
    settings = [setting for setting in all_there_are if hasattr(setting, "use_cache")]
    before = [setting.use_cache for setting in settings]
    try:
        for setting in settings:
            setting.use_cache = False
        yield
    finally:
        for setting, use_cache in zip(settings, before, strict=True):
            setting.use_cache = use_cache
