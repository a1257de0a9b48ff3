"""Low-rank additions to weights (LoRA, arXiv 2106.09685), by torch's parametrisations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

_Make = Callable[[], Tensor]
_Sums = dict[int, tuple[ReferenceType[Tensor], _Make]]
"""Address in memory → the sum W + B·A that is there, and what makes it again; without those that are gone."""


class LowRank(nn.Module):
    """W → W + B·A, with B `[rows, rank]` from 0 on and A `[rank, columns]` drawn; W alone while it is not `on`.

    The rank is no more than W's own can be.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator, sums: _Sums) -> None:
        super().__init__()
        rows, columns = weight.shape
        rank = min(rank, rows, columns)
        drawn = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.a = nn.Parameter(drawn.to(weight.device))
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.on = True
        self._sums = sums

    def forward(self, weight: Tensor) -> Tensor:
        if not self.on:
            return weight
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        found = self._sum(weight, dtype)
        address = _address(found)
        self._sums[address] = ref(found, lambda _: self._sums.pop(address, None)), partial(self._sum, weight, dtype)
        return found

    def _sum(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """In the number type that it is multiplied in: a copy in another would be kept for the backward pass."""
        with torch.autocast(weight.device.type, enabled=False):  # the same in the backward pass, where there is none
            return (weight + (self.b @ self.a).to(weight.dtype)).to(dtype)


def reached(layers: Sequence[nn.Module]) -> float:
    """Share of the numbers in the matrices of `layers`, fused ones too, that `low_rank` gives additions to."""
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    matrices = sum(parameter.numel() for parameter in parameters if parameter.dim() > 1)
    return sum(weight.numel() for weight in _matrices(layers)) / max(1, matrices)


def most_rank(layers: Sequence[nn.Module]) -> int:
    """The largest rank that a matrix of `layers` which gets an addition can have."""
    return max((min(weight.shape) for weight in _matrices(layers)), default=0)


@contextmanager
def low_rank(model: PreTrainedModel, layers: Sequence[nn.Module], rank: int, *, seed: int) -> Iterator[list[LowRank]]:
    """Give every module of `layers` with a matrix for a weight an addition, the only thing that learns.

    It is merged when the context is left. Experts that are stored fused, one tensor for all of them, get none.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    modules = [module for layer in layers for module in layer.modules() if _matrix(module) is not None]
    additions: list[LowRank] = []
    sums: _Sums = {}
    for module in modules:
        weight = _matrix(module)
        assert weight is not None
        additions.append(LowRank(weight, rank, generator, sums))
        parametrize.register_parametrization(module, "weight", additions[-1])
    try:
        with _made_again(sums):
            yield additions
    finally:
        for module in modules:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for parameter in learning:
            parameter.requires_grad_(True)


def _made_again(sums: _Sums) -> saved_tensors_hooks:
    """Keep no sum from the forward for the backward pass: together they are as large as the layers.

    What else is kept is no longer checked for changes in place, which is how torch has it with such hooks.
    """

    def pack(tensor: Tensor) -> Tensor | _Make:
        _, make = sums.get(_address(tensor), (None, None))
        if make is None:
            return tensor.detach()  # an operation's own result, kept as it is, would keep itself alive
        shape = tensor.size(), tensor.stride(), tensor.storage_offset()
        return lambda: make().detach().as_strided(*shape)

    return saved_tensors_hooks(pack, lambda kept: kept if isinstance(kept, Tensor) else kept())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


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


def _matrices(layers: Sequence[nn.Module]) -> list[Tensor]:
    found = [_matrix(module) for layer in layers for module in layer.modules()]
    return [weight for weight in found if weight is not None]


def _matrix(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, nn.Parameter) and weight.dim() == 2 else None
