"""Low-rank additions to weights (LoRA, arXiv 2106.09685), by torch's parametrisations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel


class LowRank(nn.Module):
    """W → W + B·A, with B `[rows, rank]` from 0 on and A `[rank, columns]` drawn; W alone while it is not `on`."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        drawn = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.a = nn.Parameter(drawn.to(weight.device))
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.on = True

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).to(weight.dtype) if self.on else weight


@contextmanager
def low_rank(model: PreTrainedModel, layers: Sequence[nn.Module], rank: int, *, seed: int) -> Iterator[list[LowRank]]:
    """Give every matrix of `layers` an addition, the only thing that learns; it is merged when the context is left."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    modules = [module for layer in layers for module in layer.modules() if _matrix(module) is not None]
    additions = []
    for module in modules:
        weight = _matrix(module)
        assert weight is not None
        additions.append(LowRank(weight, rank, generator))
        parametrize.register_parametrization(module, "weight", additions[-1])
    try:
        yield additions
    finally:
        for module in modules:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def switched_off(additions: Sequence[LowRank]) -> Iterator[None]:
    """The model without the additions."""
    for addition in additions:
        addition.on = False
    try:
        yield
    finally:
        for addition in additions:
            addition.on = True


def _matrix(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, nn.Parameter) and weight.dim() == 2 else None
