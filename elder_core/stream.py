"""The residual stream: what decoder layers add to it, changed by changing their matrices.

Every layer adds the outputs of two matrices, attention's and the MLP's, to the hidden state. Multiplied by another
matrix, such an output stays the output of a matrix, so a compensation costs the shorter model nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from elder_core.errors import UnsupportedArchitecture
from elder_core.gates import hooked
from elder_core.surgery import decoder_layers, row_of


def writers(model: PreTrainedModel, layer: int) -> tuple[nn.Module, nn.Module]:
    """The modules whose outputs `layer` adds to the hidden state: of its attention and of its MLP.

    Raises:
        UnsupportedArchitecture: see require_plain_stream.
    """
    require_plain_stream(model)
    paths = row_of(model).writers
    attention, mlp = attrgetter(*paths)(decoder_layers(model)[layer])
    return cast("nn.Module", attention), cast("nn.Module", mlp)


def require_plain_stream(model: PreTrainedModel) -> None:
    """Check that layers only add to the hidden state, and that a norm is the last to read it.

    Raises:
        UnsupportedArchitecture: the architecture is not in the table, or its config has it otherwise.
    """
    row = row_of(model)
    if not row.writers:
        raise UnsupportedArchitecture(
            f"This method cannot compensate for layers of {row.model_type} models, which add more to the hidden state "
            "than the outputs of two matrices. Methods that only select layers can.",
            loc=("method", "name"),
        )
    settings = model.config.get_text_config()
    for name, value in row.plain_stream:
        if getattr(settings, name) != value:
            raise UnsupportedArchitecture(
                f"This method cannot compensate for layers of this {row.model_type} model: its config sets {name} to "
                f"{getattr(settings, name)}, so that more happens to the hidden state than layers adding to it. "
                "Methods that only select layers can.",
                loc=("method", "name"),
            )


@torch.no_grad()
def map_output(module: nn.Module, matrix: Tensor) -> None:
    """Let `module` answer y·T where it answered y, by its weight and bias. T is `matrix` `[hidden, hidden]`."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    matrix = matrix.to(weight.device, torch.float32)
    rows = weight.float()
    weight.copy_(matrix.T @ rows if isinstance(module, nn.Linear) else rows @ matrix)  # Conv1D keeps [in, out]
    if isinstance(bias, Tensor):
        bias.copy_(bias.float() @ matrix)


@torch.no_grad()
def scale_output(module: nn.Module, factor: float) -> None:
    """Let `module` answer `factor` times what it answered, by its weight and bias."""
    for part in (module.weight, module.bias):
        if isinstance(part, Tensor):
            part.mul_(factor)


@contextmanager
def outputs_scaled(model: PreTrainedModel, factors: Sequence[float]) -> Iterator[None]:
    """The model as `scale_output` would make it with each layer's factor in `factors` `[layers]`, by hooks.

    Raises:
        UnsupportedArchitecture: see require_plain_stream.
    """
    scaled = [
        (module, factor) for layer, factor in enumerate(factors) if factor != 1 for module in writers(model, layer)
    ]
    hooks = {place: partial(_times, factor) for place, (_, factor) in enumerate(scaled)}
    with hooked([module for module, _ in scaled], hooks):
        yield


def _times(factor: float, _: Tensor, y: Tensor) -> Tensor:
    return y * factor
