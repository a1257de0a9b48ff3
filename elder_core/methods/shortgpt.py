"""ShortGPT (arXiv 2403.03853): remove the layers that turn their input the least."""

from __future__ import annotations

import torch

from elder_core.devices import autocast
from elder_core.gates import observed
from elder_core.methods.base import Context, Method, Selection
from elder_core.methods.mathematics import block_influence
from elder_core.spec import ShortGptParameters
from elder_core.surgery import decoder_layers


class ShortGpt(Method):
    """Block influence over all calibration windows, then the `count` lowest at once."""

    def __init__(self, parameters: ShortGptParameters) -> None:
        self.parameters = parameters

    def select(self, context: Context, count: int) -> Selection:
        influence = self._influence(context)
        lowest = sorted(range(len(influence)), key=lambda layer: (influence[layer], layer))[:count]
        return Selection(
            removed=tuple(sorted(lowest)),
            weights=tuple(influence),
            weight_label="block influence, 1 − cos(input, output)",
        )

    def _influence(self, context: Context) -> list[float]:
        """Block influence of every layer, the mean over the tokens of all windows."""
        layers = decoder_layers(context.model)
        total = torch.zeros(len(layers), dtype=torch.float64)
        batches = torch.split(context.windows, self.parameters.batch_size)
        with observed(layers, block_influence, range(len(layers))) as seen:
            for step, batch in enumerate(batches, start=1):
                with torch.no_grad(), autocast(context.device):
                    context.model(input_ids=batch.to(context.device), use_cache=False, logits_to_keep=1)
                total += torch.stack([seen[layer] for layer in range(len(layers))]).double().cpu() * len(batch)
                context.monitor.step(step, len(batches))
        influence: list[float] = (total / len(context.windows)).tolist()
        return influence
