"""A reference spectrogram to one vector that says how its voice sounds.

The style encoder of Meta-StyleSpeech (Min et al. 2021, arXiv:2106.03153): frame-wise layers, gated convolutions, self
attention, mean over time. Shapes: B batch, F bins, L frames, D width, H heads, G width of the timbre vector.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsv_core.networks.dropout import Dropout


class ReferenceEncoder(nn.Module):
    """(B, F, L) -> (B, G, 1)."""

    def __init__(self, bins: int, width: int, timbre_width: int, *, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.spectral = nn.Sequential(
            *(_Wrapped(bins, width), nn.Mish(), Dropout(dropout)),
            *(_Wrapped(width, width), nn.Mish(), Dropout(dropout)),
        )
        self.temporal = nn.Sequential(*(_GatedConvolution(width, kernel, dropout) for _ in range(2)))
        self.slf_attn = _SelfAttention(width, heads, dropout)
        self.fc = _Wrapped(width, timbre_width)

    def forward(self, spectrogram: Tensor, mask: Tensor) -> Tensor:
        """`mask` (B, 1, L) is 1 inside and 0 in the padding.

        The convolutions run before the padding is removed, so a padded item differs a little from the same item alone.
        """
        frames = self.spectral(spectrogram.transpose(1, 2))
        frames = self.temporal(frames.transpose(1, 2)) * mask
        described = self.fc(self.slf_attn(frames.transpose(1, 2), mask.bool())).transpose(1, 2)
        return (described * mask).sum(dim=2, keepdim=True) / mask.sum(dim=2, keepdim=True)


class _Wrapped(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class _GatedConvolution(nn.Module):
    """x + convolution(x) * sigmoid(its gate): (B, D, L) -> (B, D, L)."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = _WrappedConvolution(width, 2 * width, kernel)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(functional.glu(self.conv1(x), dim=1))


class _WrappedConvolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _SelfAttention(nn.Module):
    """Attention with a residual and no norm: (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.drop_weights = Dropout(dropout)
        self.w_qs = nn.Linear(width, width)
        self.w_ks = nn.Linear(width, width)
        self.w_vs = nn.Linear(width, width)
        self.fc = nn.Linear(width, width)
        self.drop = Dropout(dropout)
        # By the width of the model, not of a head: what the published weights were trained with.
        self.scale = 1 / math.sqrt(width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        queries, keys, values = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in (self.w_qs, self.w_ks, self.w_vs)
        )
        seen = seen.unsqueeze(1)
        if self.training and self.drop_weights.share:
            scores = (queries @ keys.transpose(2, 3) * self.scale).masked_fill(~seen, -torch.inf)
            mixed = self.drop_weights(scores.softmax(dim=-1)) @ values
        else:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=self.scale)
        return x + self.drop(self.fc(mixed.transpose(1, 2).flatten(2)))
