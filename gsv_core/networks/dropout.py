"""Dropout that follows from the clip: what a value loses does not depend on the batch that its clip is in.

Which values fall out is a function of (key of the clip, name of the layer, place of the value), computed by mixing
integers (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") instead of drawn one after the other. So a
clip loses the same values alone, in a batch of any size and padding, in a part of a batch, on any rank, and when a
layer is computed again in the backward pass. On a CPU it is also quicker than drawing. Without keys it is torch's own.
Shapes: B batch, L columns, N columns of all items one behind the other, D width.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)
"""Of a 32-bit mixer with little bias (Wellons 2018, "Prospecting for hash functions")."""
_STRIDE = 0x9E3779B9 - 2**32
"""Odd, and far from any small multiple of 2^32: neighbours get keys that have nothing in common."""
_HALF = 2**31


@dataclass
class DropoutKeys:
    """What the dropout layers of one network follow in the next pass; shared by all of them."""

    clips: Tensor | None = None
    """(B,) int32: a key per item; None for torch's own dropout."""
    columns: Tensor | None = None
    """(N,) int32, from `column_keys`: where a network works on the real columns of all items one behind the other."""
    passes: int = 0
    """Counts passes over the same items, so that each loses other values."""

    def return_for(self, made: Tensor) -> None:
        """Go back to what is followed now when the backward pass comes to what was `made` with it.

        Layers that are computed again there lose what they lost, whatever other pass was made in between.
        """
        now = dict(vars(self))
        made.register_hook(lambda _: vars(self).update(now))


class Dropout(nn.Module):
    """As `nn.Dropout`; the first axis is that of the items, or of all their columns where there are two axes."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.salt = 0
        self.keys: DropoutKeys | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        if self.keys is None or self.keys.clips is None:
            return functional.dropout(x, self.share)
        return x.masked_fill(self._lost(x, self.keys), 0.0) * (1 / (1 - self.share))

    @torch.no_grad()
    def _lost(self, x: Tensor, keys: DropoutKeys) -> Tensor:
        """True where a value of `x` falls out."""
        rows = keys.columns if x.ndim == 2 else keys.clips
        assert rows is not None, "a pass over columns needs their keys"
        for size in x.shape[1:-1]:
            rows = _mixed(rows.unsqueeze(-1) + _places(size, rows.device))
        own = _mixed(_places(x.shape[-1], rows.device) + _as_int32(self.salt + keys.passes))
        mixed = rows.unsqueeze(-1) ^ own
        mixed *= _FACTORS[0]
        mixed ^= mixed >> 15
        mixed *= _FACTORS[1]
        return mixed < round(self.share * 2 * _HALF) - _HALF


def follow_clips(network: nn.Module) -> DropoutKeys:
    """Let every `Dropout` of `network` follow the keys that are put into the result."""
    keys = DropoutKeys()
    for name, module in network.named_modules():
        if isinstance(module, Dropout):
            module.keys = keys
            module.salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return keys


def clip_keys(seeds: list[int], device: torch.device) -> Tensor:
    """(B,) int32 from one number per item, of any size."""
    return torch.tensor([_as_int32(seed) for seed in seeds], dtype=torch.int32, device=device)


def column_keys(clips: Tensor, lengths: Tensor) -> Tensor:
    """Keys of the real columns of items of `lengths` (B,), one item behind the other: (B,) int32 -> (N,) int32."""
    starts = lengths.cumsum(0) - lengths
    count = int(lengths.sum())
    places = torch.arange(count, device=clips.device) - starts.repeat_interleave(lengths)
    return _mixed(clips.repeat_interleave(lengths) + places.int() * _STRIDE)


def _places(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, dtype=torch.int32, device=device) * _STRIDE


def _mixed(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x *= _FACTORS[0]
    x ^= x >> 15
    x *= _FACTORS[1]
    return x ^ (x >> 16)


def _as_int32(number: int) -> int:
    return (number + _HALF) % (2 * _HALF) - _HALF
