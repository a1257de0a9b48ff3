"""ShortGPT (arXiv 2403.03853): remove the layers that turn their input the least."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from elder_core.devices import autocast
from elder_core.gates import observed
from elder_core.methods.base import Chooser, Context
from elder_core.methods.baseline import SharingBaseline, lowest
from elder_core.methods.mathematics import block_influence
from elder_core.parameters import ShortGptParameters
from elder_core.surgery import decoder_layers


class ShortGpt(SharingBaseline[ShortGptParameters]):
    """Block influence, the mean over the tokens of all windows, then the `count` lowest at once."""

    def chooser(self, context: Context, counts: Sequence[int]) -> Chooser:
        layers = decoder_layers(context.model)
        with observed(layers, block_influence, range(len(layers))) as seen:

            def influences(batch: Tensor) -> Tensor:
                with torch.no_grad(), autocast(context.device):
                    context.model(input_ids=batch, use_cache=False, logits_to_keep=1)
                return torch.stack([seen[layer] for layer in range(len(layers))])

            found = self.mean_over_windows(context, influences).tolist()
        return cache(lambda count: lowest(found, count, "block influence, 1 − cos(input, output)"))
