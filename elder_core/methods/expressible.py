"""Choices that the model's config has words for: the pattern of a hybrid's layers is often said by a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from transformers import PreTrainedModel

from elder_core import surgery
from elder_core.errors import UnsupportedArchitecture
from elder_core.methods.base import Chooser, Context, Method, Selection
from elder_core.monitor import Monitor


def chooser(method: Method, context: Context, counts: Sequence[int]) -> Chooser:
    """`method.chooser`; what the config has no words for is exchanged for the nearest set that it has words for.

    Raises:
        UnsupportedArchitecture: there is none of that many layers; the message names the nearest number.
        NonFiniteLoss, Cancelled: see Method.chooser; so may the chooser.
    """
    selected = method.chooser(context, counts)
    return cache(lambda count: _expressible(context.model, selected(count)))


def check(model: PreTrainedModel, selection: Selection, monitor: Monitor) -> None:
    """Refuse layers that cannot be removed together, before any training; warn where others were taken instead.

    Warn as well where the shorter model's config lacks a setting that other programs than transformers may read.

    Raises:
        UnsupportedArchitecture, LayersOutOfRange, DuplicateLayers, NoLayerLeft: see surgery.remove_layers.
    """
    changes = surgery.removal_changes(model, selection.removed)
    if dropped := [name for name, value in changes.items() if value is None]:
        monitor.warn(
            f"The new config.json does not set {' or '.join(dropped)}: no number says it of the layers that stay. Its "
            f"lists of layers do, which transformers goes by; a program that reads the number alone cannot load the "
            f"model as it is."
        )
    if selection.chosen is not None:
        stay = sorted(set(selection.chosen) - set(selection.removed))
        go = sorted(set(selection.removed) - set(selection.chosen))
        monitor.warn(
            f"The method chose the layers {list(selection.chosen)}, which the model's config has no words to do "
            f"without; {stay} stayed and {go} went instead, the nearest that it has words for."
        )


def most_removable(model: PreTrainedModel) -> int:
    """The largest number of layers that can be removed together, 0 if there is none."""
    layers = len(surgery.decoder_layers(model))
    counts = range(layers - 1, 0, -1)
    return next((count for count in counts if surgery.nearest_removable(model, range(count)) is not None), 0)


def _expressible(model: PreTrainedModel, selection: Selection) -> Selection:
    found = surgery.nearest_removable(model, selection.removed, selection.weights)
    if found is None:
        layers, wanted = len(surgery.decoder_layers(model)), len(selection.removed)
        most = most_removable(model)
        raise UnsupportedArchitecture(
            f"No {wanted} of the {layers} layers of this {model.config.model_type} model can be removed together: its "
            f"config has no words for what would remain. Remove {most} (ratio {most / layers:.2g}) or fewer.",
            loc=("layers_to_remove",),
        )
    return selection if found == selection.removed else replace(selection, removed=found, chosen=selection.removed)
