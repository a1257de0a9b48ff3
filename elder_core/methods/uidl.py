"""UIDL (arXiv 2403.17887): remove the block of neighbouring layers that turns the last token's state the least."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from elder_core.methods.base import Chooser, Context
from elder_core.methods.baseline import SharingBaseline
from elder_core.methods.blocks import block_chooser
from elder_core.methods.mathematics import angular_distance
from elder_core.parameters import UidlParameters


class Uidl(SharingBaseline[UidlParameters]):
    """Angular distance across each block at the last token, the mean over all windows (section 3.2)."""

    def chooser(self, context: Context, counts: Sequence[int]) -> Chooser:
        label = "smallest angle across a block with the layer, in half turns"
        return block_chooser(self, context, counts, angular_distance, label, keep=_last_token)


def _last_token(state: Tensor) -> Tensor:
    return state[:, -1]  # [batch, hidden]
