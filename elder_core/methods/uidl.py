"""UIDL (arXiv 2403.17887): remove the block of neighbouring layers that turns the last token's state the least."""

from __future__ import annotations

from torch import Tensor

from elder_core.methods.base import Context, Selection
from elder_core.methods.baseline import ScoringBaseline
from elder_core.methods.blocks import best_block, block_distances, boundary_states
from elder_core.methods.mathematics import angular_distance
from elder_core.parameters import UidlParameters


class Uidl(ScoringBaseline[UidlParameters]):
    """Angular distance across each block at the last token, the mean over all windows (section 3.2)."""

    def select(self, context: Context, count: int) -> Selection:
        def distances(batch: Tensor) -> Tensor:
            return block_distances(boundary_states(context.model, batch, _last_token), count, angular_distance)

        mean = self.mean_over_windows(context, distances)
        return best_block(mean.tolist(), count, "smallest angle across a block with the layer, in half turns")


def _last_token(state: Tensor) -> Tensor:
    return state[:, -1]  # [batch, hidden]
