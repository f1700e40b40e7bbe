"""Attention over channels-first sequences, as the semantic-to-wave network uses it.

Self-attention with learned relative positions inside a window (Shaw, Uszkoreit and Vaswani 2018, arXiv:1803.02155)
and plain cross-attention. Shapes: B batch, C channels, H heads, D channels of a head, L frames, P phonemes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsv_core.networks.dropout import Dropout
from gsv_core.networks.layers import ChannelLayerNorm


class Attention(nn.Module):
    """Multi-head attention with 1x1 convolutions as projections; `window` adds relative positions up to that distance.

    The relative keys and values are shared by the heads; beyond the window they contribute nothing.
    """

    def __init__(self, channels: int, heads: int, *, window: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.drop = Dropout(dropout)
        self.conv_q = nn.Conv1d(channels, channels, 1)
        self.conv_k = nn.Conv1d(channels, channels, 1)
        self.conv_v = nn.Conv1d(channels, channels, 1)
        self.conv_o = nn.Conv1d(channels, channels, 1)
        for projection in (self.conv_q, self.conv_k, self.conv_v):
            nn.init.xavier_uniform_(projection.weight)
        if window is not None:
            width = channels // heads
            self.emb_rel_k = nn.Parameter(torch.randn(1, 2 * window + 1, width) / math.sqrt(width))
            self.emb_rel_v = nn.Parameter(torch.randn(1, 2 * window + 1, width) / math.sqrt(width))

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """(B, C, L) asks (B, C, P), of which `context_mask` (B, 1, P) is 1 where there is something: -> (B, C, L)."""
        queries, keys, values = (
            projection(source).unflatten(1, (self.heads, -1)).transpose(2, 3)  # (B, H, L or P, D)
            for projection, source in ((self.conv_q, x), (self.conv_k, context), (self.conv_v, context))
        )
        seen = context_mask.bool().unsqueeze(2)  # (B, 1, 1, P)
        if self.window is None:
            assert self.drop.share == 0, "only attention in a window drops weights"
            mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        else:
            mixed = self._relative(queries, keys, values, seen)
        return self.conv_o(mixed.transpose(2, 3).flatten(1, 2))

    def _relative(self, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        assert self.window is not None
        queries = queries / math.sqrt(queries.shape[-1])
        scores = queries @ keys.transpose(2, 3) + spread_band(queries @ self.emb_rel_k.transpose(1, 2), self.window)
        # Finite, so that an item that is all padding gives numbers instead of NaN.
        weights = scores.masked_fill(~seen, -1e4).softmax(dim=-1)
        weights = self.drop(weights)
        return weights @ values + gather_band(weights, self.window) @ self.emb_rel_v


def spread_band(band: Tensor, window: int) -> Tensor:
    """Values per distance to values per pair: out[.., i, j] = band[.., i, j - i + window], 0 beyond the window.

    (B, H, L, 2 window + 1) -> (B, H, L, L).
    """
    length, width = band.shape[2], band.shape[3] + band.shape[2]
    # Reading rows of `width` as rows of `width - 1` moves row i to the right by i.
    skewed = functional.pad(band, (0, length)).flatten(2)[..., : length * (width - 1)]
    return skewed.unflatten(2, (length, width - 1))[..., window : window + length]


def gather_band(pairs: Tensor, window: int) -> Tensor:
    """The reverse: out[.., i, k] = pairs[.., i, i + k - window], 0 outside. (B, H, L, L) -> (B, H, L, 2 window + 1)."""
    length = pairs.shape[2]
    flat = functional.pad(functional.pad(pairs, (window, window)).flatten(2), (0, length))
    return flat.unflatten(2, (length, length + 2 * window + 1))[..., : 2 * window + 1]


class FeedForward(nn.Module):
    """Two "same" convolutions with a ReLU between them; the input of each is masked."""

    def __init__(self, channels: int, inner_channels: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(channels, inner_channels, kernel, padding=kernel // 2)
        self.conv_2 = nn.Conv1d(inner_channels, channels, kernel, padding=kernel // 2)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, C, L), (B, 1, L) -> (B, C, L)."""
        inner = self.drop(torch.relu(self.conv_1(x * mask)))
        return self.conv_2(inner * mask) * mask


class AttentionEncoder(nn.Module):
    """A post-norm transformer over frames: relative attention, then convolutional feed-forward."""

    def __init__(
        self,
        channels: int,
        inner_channels: int,
        *,
        heads: int,
        layers: int,
        kernel: int,
        window: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.drops_1 = nn.ModuleList(Dropout(dropout) for _ in range(layers))
        self.drops_2 = nn.ModuleList(Dropout(dropout) for _ in range(layers))
        self.attn_layers = nn.ModuleList(
            Attention(channels, heads, window=window, dropout=dropout) for _ in range(layers)
        )
        self.norm_layers_1 = nn.ModuleList(ChannelLayerNorm(channels) for _ in range(layers))
        self.ffn_layers = nn.ModuleList(FeedForward(channels, inner_channels, kernel, dropout) for _ in range(layers))
        self.norm_layers_2 = nn.ModuleList(ChannelLayerNorm(channels) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, C, L), (B, 1, L) -> (B, C, L), zero in the padding."""
        x = x * mask
        attentions = zip(self.attn_layers, self.drops_1, self.norm_layers_1, strict=True)
        feeds = zip(self.ffn_layers, self.drops_2, self.norm_layers_2, strict=True)
        for (attend, drop_1, norm_1), (feed, drop_2, norm_2) in zip(attentions, feeds, strict=True):
            x = norm_1(x + drop_1(attend(x, x, mask)))
            x = norm_2(x + drop_2(feed(x, mask)))
        return x * mask
