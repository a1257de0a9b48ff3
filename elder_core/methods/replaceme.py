"""ReplaceMe (arXiv 2505.02819): let the layer before a removed block stand in for it, by a linear map in its weights.

A layer's output is out = m + rest, m being its MLP's output (or, where attention and MLP run side by side, still one
summand). With m·(I + D) in m's place, out changes by m·D; so D is fitted to make m·D what the block would have added,
over all tokens, and I + D is folded into the MLP's last matrix and bias. The paper writes T for I + D and fits
m·T + rest to the block's output, which is the same. Its ridge pulls T towards 0; here it pulls D towards 0, that is
towards plain removal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from elder_core.methods.base import Chooser, Context
from elder_core.methods.baseline import SharingBaseline
from elder_core.methods.blocks import block_chooser, boundary_states
from elder_core.methods.mathematics import block_influence, ridge_map
from elder_core.parameters import ReplaceMeParameters
from elder_core.stream import map_output, require_plain_stream, writers


class ReplaceMe(SharingBaseline[ReplaceMeParameters]):
    """The block of least cosine distance between input and output, then least squares. Layer 0 stays, to be mapped."""

    def chooser(self, context: Context, counts: Sequence[int]) -> Chooser:
        require_plain_stream(context.model)
        label = "smallest cosine distance across a block with the layer"
        return block_chooser(self, context, counts, block_influence, label, first=1)

    def compensate(self, context: Context, removed: tuple[int, ...]) -> None:
        """Fold a map into the layer before each block of neighbours in `removed`, all fitted on the whole model."""
        found = _mapped(removed)
        if 0 in removed:
            context.monitor.warn("No layer stands before layer 0, so nothing makes up for the block that begins there.")
        if not found:
            return
        matrices = self.compensated(context, removed)
        grams, crosses = self._normal_equations(context, found, matrices)
        for module, gram, cross in zip(matrices, grams, crosses, strict=True):
            change = ridge_map(gram, cross, self.parameters.ridge)
            map_output(module, torch.eye(len(change), dtype=change.dtype) + change)

    def compensated(self, context: Context, removed: tuple[int, ...]) -> list[nn.Module]:
        return [writers(context.model, block[0] - 1)[1] for block in _mapped(removed)]

    def _normal_equations(
        self, context: Context, found: Sequence[range], matrices: Sequence[nn.Module]
    ) -> tuple[Tensor, Tensor]:
        """mᵀ·m and mᵀ·(what the block adds), each `[blocks, hidden, hidden]`, the mean over all windows."""
        with _outputs(matrices) as seen:

            def products(batch: Tensor) -> Tensor:
                states = boundary_states(context.model, batch)
                pairs = []
                for block, m in zip(found, seen, strict=True):
                    added = (states[block.stop].float() - states[block.start].float()).flatten(0, -2)
                    pairs.append(torch.stack([m.T @ m, m.T @ added]) / len(batch))
                return torch.stack(pairs)  # [blocks, 2, hidden, hidden]

            mean = self.mean_over_windows(context, products)
        return mean[:, 0], mean[:, 1]


def _mapped(layers: Sequence[int]) -> list[range]:
    """The blocks that a layer stands before."""
    return [block for block in blocks_of(layers) if block[0] > 0]


def blocks_of(layers: Sequence[int]) -> list[range]:
    """Runs of neighbours in `layers`, which ascend."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    stops = [layer + 1 for layer in layers if layer + 1 not in layers]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The modules' latest outputs `[tokens, hidden]` in float32."""
    seen: list[Tensor] = [torch.empty(0)] * len(modules)

    def remember(place: int, output: Tensor) -> None:
        seen[place] = output.detach().flatten(0, -2).float()

    handles = [
        module.register_forward_hook(lambda *call, place=place: remember(place, call[-1]))
        for place, module in enumerate(modules)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
