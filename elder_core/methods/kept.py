"""Lists of tensors, and what an optimiser knows, as a page of the journal has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

OPTIMIZER = "optimizer"


def numbered(what: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """`tensors` by name: what.0, what.1 and so on."""
    return {f"{what}.{number}": tensor for number, tensor in enumerate(tensors)}


@torch.no_grad()
def overwrite(tensors: Sequence[Tensor], what: str, known: Mapping[str, Tensor]) -> None:
    """Put into `tensors` those that `numbered` once named."""
    for number, tensor in enumerate(tensors):
        tensor.copy_(known[f"{what}.{number}"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What `optimizer` knows of each parameter: nothing before its first step."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{OPTIMIZER}.{number}.{name}": tensor for number, known in state.items() for name, tensor in known.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, known: Mapping[str, Tensor]) -> None:
    """Let `optimizer` know what `optimizer_tensors` told, and keep its settings."""
    state: dict[int, dict[str, Tensor]] = {}
    for place, tensor in known.items():
        if place.startswith(f"{OPTIMIZER}."):
            _, number, name = place.split(".", 2)
            state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
