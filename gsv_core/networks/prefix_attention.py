"""Self-attention over [phonemes | tokens] of the text-to-semantic network: who sees whom, without padding's cost.

Phonemes see all phonemes, tokens see all phonemes and the tokens before them. What is padding is left out of every
product: a batch is kept as its real columns one behind the other (`Places`), and on a CPU attention goes item by item.
Shapes: B batch, P phonemes, S semantic tokens, L columns (P + S), N real columns, D width, H heads.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def goes_by_item(x: Tensor) -> bool:
    """Whether attention goes item by item, with `item_masks`: not on a GPU, whose time is one of launches."""
    return x.device.type != "cuda"


def prefix_mask(phonemes: Tensor, tokens: Tensor) -> Tensor:
    """Who sees whom, given what is no padding: (B, P), (B, S) -> (B, 1, P + S, P + S) bool, rows ask columns."""
    prefix = phonemes.shape[1]
    total = prefix + tokens.shape[1]
    order = torch.ones(total, total, dtype=torch.bool, device=phonemes.device).tril()
    order[:prefix, :prefix] = True
    return (order & torch.cat([phonemes, tokens], dim=1).unsqueeze(1)).unsqueeze(1)


def item_masks(phoneme_lengths: Tensor, token_lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The same for each item without its padding: (1, 1, L, L), 0 where it sees, minus infinity where it does not."""
    masks = []
    for phonemes, tokens in zip(phoneme_lengths.tolist(), token_lengths.tolist(), strict=True):
        total = phonemes + tokens
        mask = torch.full((1, 1, total, total), -torch.inf, dtype=dtype).triu(1)
        mask[..., :phonemes, :phonemes] = 0
        masks.append(mask)
    return tuple(masks)


def real_columns(phonemes: Tensor, tokens: Tensor) -> Tensor | None:
    """Where a batch has no padding, given the same: (N,) int64 into B x (P + S) columns; None where that is all."""
    real = torch.cat([phonemes, tokens], dim=1).flatten().nonzero()[:, 0]
    return None if len(real) == phonemes.numel() + tokens.numel() else real


@dataclass(frozen=True)
class Places:
    """Between a padded batch and its real columns one behind the other: (B, L, D) <-> (N, D), or no change."""

    batch: int
    columns: int
    real: Tensor | None

    def gather(self, x: Tensor) -> Tensor:
        return x if self.real is None else x.flatten(0, 1).index_select(0, self.real)

    def spread(self, x: Tensor) -> Tensor:
        if self.real is None:
            return x
        padded = x.new_zeros(self.batch * self.columns, x.shape[1]).index_copy(0, self.real, x)
        return padded.unflatten(0, (self.batch, self.columns))


class PrefixAttention(nn.Module):
    """Multi-head self-attention, queries, keys and values by one product; parameter names are those of the files."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | tuple[Tensor, ...],
        places: Places,
        past: Tensor | None,
        attention_dropout: bool,
    ) -> Tensor:
        """As `places` has it, (B, L, D) or (N, D); leaves keys and values in `past`."""
        dropout = self.dropout if self.training and attention_dropout else 0.0
        packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        if isinstance(mask, tuple):
            assert past is None, "decoding keeps all items in one tensor"
            return self.out_proj(self._by_item(packed, mask, dropout))
        packed = places.spread(packed)
        packed = packed.unflatten(2, (3, self.heads, -1)).permute(0, 2, 3, 1, 4)  # (B, 3, H, L, D / H)
        queries, keys, values = packed.unbind(1)
        if past is not None:
            past[..., : packed.shape[3], :] = packed[:, 1:].permute(1, 2, 0, 3, 4)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(places.gather(mixed.transpose(1, 2).flatten(2)))

    def _by_item(self, packed: Tensor, masks: tuple[Tensor, ...], dropout: float) -> Tensor:
        """Queries, keys and values (N, 3 D) of items one behind the other -> (N, D)."""
        if len(masks) > 1 and not dropout and packed.requires_grad and packed.device.type == "cpu":
            mixed_items: Tensor = _ItemAttention.apply(packed, self.heads, masks)
            return mixed_items
        mixed = []
        for columns, mask in zip(packed.split([mask.shape[-1] for mask in masks]), masks, strict=True):
            queries, keys, values = columns.unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3).unsqueeze(1)
            own = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
            mixed.append(own[0].transpose(0, 1).flatten(1))
        return torch.cat(mixed)


class _ItemAttention(torch.autograd.Function):
    """Attention of items one behind the other on a CPU, one step of the graph for all: (N, 3 D) -> (N, D).

    The kernels are those that torch takes for each item by itself; what is saved is the dozen views around each.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, heads: int, masks: tuple[Tensor, ...]) -> Tensor:
        ctx.heads, ctx.masks = heads, masks
        mixed = packed.new_empty(len(packed), packed.shape[1] // 3)
        normalisers = []
        for own, out, mask in zip(*_by_items(masks, packed, mixed), masks, strict=True):
            own_mixed, normaliser = _ATTENTION(*_heads_of(own, 3, heads), attn_mask=mask)
            out.view(len(own), heads, -1).copy_(own_mixed[0].transpose(0, 1))
            normalisers.append(normaliser)
        ctx.save_for_backward(packed, mixed, *normalisers)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        packed, mixed, *normalisers = ctx.saved_tensors
        heads, masks = ctx.heads, ctx.masks
        found = torch.empty_like(packed)
        items = zip(*_by_items(masks, gradients[0], packed, mixed, found), masks, normalisers, strict=True)
        for above, own, own_mixed, out, mask, normaliser in items:
            (above_heads,), (mixed_heads,) = _heads_of(above, 1, heads), _heads_of(own_mixed, 1, heads)
            three = _heads_of(own, 3, heads)
            own_found = _ATTENTION_BACKWARD(above_heads, *three, mixed_heads, normaliser, 0.0, False, attn_mask=mask)
            torch.cat([one[0].transpose(0, 1).flatten(1) for one in own_found], dim=1, out=out)
        return found, None, None


_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _by_items(masks: tuple[Tensor, ...], *columns: Tensor) -> list[tuple[Tensor, ...]]:
    """Each of `columns` (N, ..) cut where an item ends."""
    lengths = [mask.shape[-1] for mask in masks]
    return [one.split(lengths) for one in columns]


def _heads_of(columns: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    """(L, count D) -> `count` times (1, H, L, D / H)."""
    return columns.view(1, len(columns), count, heads, -1).permute(2, 0, 3, 1, 4).unbind()
