"""Weights on decoder layers, and looks at what passes through them, by forward hooks.

x is a layer's input and F(x) its output, residual included, both `[batch, seq, hidden]`. Hooks are gone when the
context manager is left; the model's own parameters are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from elder_core.parameters import Gate

Layers = Sequence[nn.Module] | nn.ModuleList
Look = Callable[[Tensor, Tensor], Tensor]
"""From x and F(x) to what is to be remembered of them."""
Hook = Callable[[Tensor, Tensor], Tensor | None]
"""From x and F(x) to what the layer passes on; None leaves F(x)."""


@contextmanager
def gated(layers: Layers, weights: Tensor, form: Gate, chosen: Iterable[int]) -> Iterator[None]:
    """Let the layers `chosen` pass on their gated output instead of F(x).

    `weights` `[layers]` is read at every forward pass and gradients reach it. `form` is x + g · (F(x) − x) or
    g · F(x).
    """

    def gate(index: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, y: _gate(x, y, weights[index], form)

    with hooked(layers, {index: gate(index) for index in chosen}):
        yield


@contextmanager
def observed(layers: Layers, look: Look, chosen: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Remember `look(x, F(x))` of the layers `chosen`; the dictionary yielded holds that of the latest forward pass.

    Entered before `gated` it sees F(x) as it is, without the gate.
    """
    seen: dict[int, Tensor] = {}

    def remember(index: int) -> Callable[[Tensor, Tensor], None]:
        def hook(x: Tensor, y: Tensor) -> None:
            seen[index] = look(x, y)

        return hook

    with hooked(layers, {index: remember(index) for index in chosen}):
        yield seen


@contextmanager
def overridden(layers: Layers, outputs: dict[int, Tensor]) -> Iterator[None]:
    """Let layers pass on the hidden states `outputs` (layer → `[batch, seq, hidden]`), whatever they compute."""

    def override(index: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, y: outputs[index]

    with hooked(layers, {index: override(index) for index in outputs}):
        yield


def _gate(x: Tensor, y: Tensor, weight: Tensor, form: Gate) -> Tensor:
    # in float32: bfloat16 has no number between 0.996 and 1, and a step of the weight may be smaller than that
    gated_output = weight * y.float() if form is Gate.OUTPUT else x.float() + weight * (y.float() - x.float())
    return gated_output.to(y.dtype)


@contextmanager
def hooked(layers: Layers, hooks: Mapping[int, Hook]) -> Iterator[None]:
    """Call `hooks` (layer → hook) at every forward pass."""
    with ExitStack() as stack:
        for index, hook in hooks.items():
            handle = layers[index].register_forward_hook(_adapted(hook), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _adapted(hook: Hook) -> Callable[..., Any]:
    """`hook` as torch calls it. Some architectures' layers return a tuple that begins with the hidden state."""

    def forward_hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, tuple):
            changed = hook(x, output[0])
            return None if changed is None else (changed, *output[1:])
        return hook(x, output)

    return forward_hook
