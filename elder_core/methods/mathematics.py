"""What the methods compute: tensors in, tensors out, no model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from elder_core.parameters import Norm

SMALLEST = 1e-8  # keeps a division by the norm of an all-zero hidden state finite
ROUNDING = 1e-3  # of bfloat16: of unit vectors, differences that are shorter say nothing


def soft_threshold(values: Tensor, amount: float) -> Tensor:
    """Values moved towards 0 by `amount`, and 0 where they are nearer: the proximal operator of amount · ‖·‖₁."""
    return values.sign() * (values.abs() - amount).clamp(min=0)


def proximal_step(
    weights: Tensor, gradient: Tensor, *, learning_rate: float, penalty: float, longest_move: float = math.inf
) -> Tensor:
    """One step of proximal gradient descent on loss + penalty · Σ|g|, kept within [0, 1]. Weights `[layers]`.

    The gradient moves no weight by more than `longest_move`.
    """
    move = (learning_rate * gradient).clamp(-longest_move, longest_move)
    return soft_threshold(weights - move, learning_rate * penalty).clamp(0, 1)


def next_token_cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats of each next token. Logits `[batch, seq, vocabulary]`, ids `[batch, seq]`."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def centred_cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """1 − cos of the angle between `x` and `y`, each scaled to length 1 and less its mean over the sequence.

    Both are `[batch, seq, hidden]`; in float32, mean over tokens. Hidden states have a large part in common, which
    hides how those of different tokens differ. Scaling comes first, so that one token a hundred times as long as the
    others, as the first often is, does not make the mean. Where what is left is shorter than `ROUNDING` the distance
    tends to 1, and its gradient stays bounded.
    """
    x, y = (functional.normalize(state.float(), dim=-1, eps=SMALLEST) for state in (x, y))
    x, y = (state - state.mean(dim=-2, keepdim=True) for state in (x, y))
    return 1 - functional.cosine_similarity(x, y, dim=-1, eps=ROUNDING).mean()


def kl_divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over tokens of KL(teacher ‖ model) in nats. Both `[batch, seq, vocabulary]`."""
    log_p = functional.log_softmax(logits.flatten(0, 1).float(), dim=-1)
    log_q = functional.log_softmax(teacher_logits.flatten(0, 1).float(), dim=-1)
    return functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def delta_norm(x: Tensor, y: Tensor, *, norm: Norm) -> Tensor:
    """How far a layer is from the identity: the norm of Δ = y − x, a scalar. Both `[batch, seq, hidden]`."""
    x, delta = x.float(), (y - x).float()
    match norm:
        case Norm.L1:
            return torch.mean(torch.linalg.vector_norm(delta, ord=1, dim=-1))
        case Norm.L2:
            return torch.mean(torch.linalg.vector_norm(delta, dim=-1))
        case Norm.RELATIVE:
            return torch.mean(delta.square().sum(-1) / x.square().sum(-1).clamp(min=SMALLEST))


def block_influence(x: Tensor, y: Tensor) -> Tensor:
    """1 − mean over tokens of cos(x, y) (ShortGPT, arXiv 2403.03853, eq. 1). Both `[batch, seq, hidden]`."""
    return 1 - functional.cosine_similarity(x.float(), y.float(), dim=-1).mean()


def angular_distance(x: Tensor, y: Tensor) -> Tensor:
    """The angle between x and y, from 0 to 1 for half a turn (arXiv 2403.17887). `[..., hidden]` to `[...]`."""
    cosine = functional.cosine_similarity(x.float(), y.float(), dim=-1)
    return torch.arccos(cosine.clamp(-1, 1)) / math.pi


def magnitude_ratio(x: Tensor, y: Tensor) -> Tensor:
    """Mean over tokens of ‖y‖₂ / ‖x‖₂, a scalar. Both `[batch, seq, hidden]`.

    A mean of ratios, not a ratio of means: the first token's norm is often hundreds of times the others'.
    """
    before, after = (torch.linalg.vector_norm(state.float(), dim=-1) for state in (x, y))
    return torch.mean(after / before.clamp(min=SMALLEST))


def taylor_importance(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> float:
    """Σ |w · ∂loss/∂w|: the first-order change of the loss were each weight alone set to 0 (arXiv 2402.02834)."""
    return sum((w.detach() * g).abs().double().sum().item() for w, g in zip(weights, gradients, strict=True))


def ridge_map(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """The D `[hidden, hidden]` that makes ‖M·D − Y‖² + ρ·‖D‖² smallest.

    Of M and Y, both `[tokens, hidden]`, it needs only `gram` = Mᵀ·M and `cross` = Mᵀ·Y, both `[hidden, hidden]`. ρ is
    `ridge` times the mean of ‖m‖² over M's columns m, so that `ridge` means the same at any scale and for any number of
    tokens.
    """
    amount = ridge * gram.diagonal().mean().clamp(min=SMALLEST)
    pulled = gram + amount * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    change: Tensor = torch.linalg.solve(pulled, cross)
    return change


def annealed_gate(share: float, fraction: float, recovery: float = 0.0) -> float:
    """Weight of the chosen layers once `share` of training is done: falls evenly from 1 to 0 over the first `fraction`.

    It is exactly 0 from there on. A fraction of 0 leaves it at 1. In the last part of training, the share `recovery` of
    it, it is 0 in any case.
    """
    if recovery and share > 1 - recovery:
        return 0.0
    if fraction == 0:
        return 1.0
    return max(0.0, 1 - share / fraction)


def learning_rate_at(before: float, after: float, peak: float, *, warmup: float = 0.1) -> float:
    """Rate of the update that takes training from share `before` to share `after`.

    Rises evenly to `peak` over the first `warmup` of training, then falls evenly to 0, which no update reaches.
    """
    return peak * min(1.0, after / warmup, (1 - before) / (1 - warmup))


def ranking(weights: Tensor, path: Tensor) -> list[int]:
    """Layers from the most to the least removable: by size of the final weight `[layers]`, then by its mean on `path`.

    `path` is `[steps, layers]`. Several weights often end at exactly 0; the one that got there first, and so has the
    smaller mean, was missed least. A weight below 0, which Adam can bring about, is as far from 0 as one above.
    """
    sizes, means = weights.abs(), path.abs().mean(dim=0)
    return sorted(range(len(weights)), key=lambda layer: (float(sizes[layer]), float(means[layer]), layer))
