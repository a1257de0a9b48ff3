"""Batches of windows by number, so that a step's data depends on the step alone and not on what ran before it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def batch_at(windows: Tensor, step: int, batch_size: int, seed: int) -> Tensor:
    """Batch number `step` `[batch_size, length]` of `windows` `[samples, length]`.

    The windows are gone through epoch by epoch, each in an order of its own drawn from `seed`; a batch may hold the
    end of one epoch and the beginning of the next.
    """
    samples = len(windows)
    positions = range(step * batch_size, (step + 1) * batch_size)
    epochs = range(positions[0] // samples, positions[-1] // samples + 1)
    orders = torch.cat([_order(samples, epoch, seed) for epoch in epochs])
    start = positions[0] - epochs[0] * samples
    return windows[orders[start : start + batch_size]]


def epochs_needed(samples: int, steps: int, batch_size: int) -> float:
    """How often `steps` batches go through `samples` windows."""
    return steps * batch_size / samples


def _order(samples: int, epoch: int, seed: int) -> Tensor:
    # torch's generator keeps only 32 bits of a seed, which two numbers do not fit into
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(samples))
