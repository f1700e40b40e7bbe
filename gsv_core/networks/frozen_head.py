"""Cross-entropy behind a frozen matrix, with its gradient in the same pass: hidden states to a loss each.

Where the matrix does not train, a loss needs of its V logits nothing later: their gradient is multiplied back at once,
and no tensor as large as they are is kept or made again (Hsu et al. 2024, arXiv:2410.10989, do so in a kernel).
Shapes: M rows, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor


def frozen_cross_entropies(hidden: Tensor, weight: Tensor, targets: Tensor, *, top: int = 3) -> tuple[Tensor, Tensor]:
    """(M, D), (V, D), (M,) -> cross-entropies in nats (M,), lower is better, and True where fewer than `top` logits are
    above the target's (M,) bool. Gradients reach `hidden` alone."""
    losses, hits = _FrozenHead.apply(hidden, weight, targets, top)
    return losses, hits


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, top: int) -> tuple[Tensor, Tensor]:
        logits = (hidden @ weight.T).float()
        own = targets.unsqueeze(1)
        said = logits.gather(1, own)
        largest = logits.amax(dim=1, keepdim=True)
        # torch's softmax of rows of 1025 takes several times as long: their ends do not fit its vectors.
        shares = (logits - largest).exp_()
        sums = shares.sum(dim=1, keepdim=True)
        losses = (largest + sums.log() - said)[:, 0]
        shares.div_(sums)
        hits = logits.sub_(said).gt_(0).sum(dim=1) < top
        shares.scatter_add_(1, own, shares.new_full((1, 1), -1).expand_as(own))
        ctx.save_for_backward(shares.to(hidden.dtype) @ weight)
        ctx.mark_non_differentiable(hits)
        return losses, hits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        # In float32, as losses are. Rounded, what a row counts for would be wrong by as much in all its gradients.
        return gradients[0].unsqueeze(1) * slope, None, None, None
