"""One decoding step of the text-to-semantic network in torch: what it remembers, reads and computes.

What a step costs is reading weights and cache: keys and values are written in place, rows of different length share a
batch, and float32 weights on a CPU are laid out in the order in which they are read. A large network's step on a CPU is
compiled instead (`decode_kernel`), one on a CUDA device is captured (`GraphedStep`).
Shapes: B rows, D width, H heads, V vocabulary, N outputs, K inputs.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from gsv_core.networks.decode_kernel import DecodeKernel
    from gsv_core.networks.text_to_semantic import TextToSemantic

SPAN_COLUMNS = 16
"""Attention looks at a multiple of this many columns, so that the shapes of a step seldom change."""

PANEL_WIDTH = 32
"""Outputs side by side in a panel of weights: what MKL's products with few rows like best."""


class LayerWeights(NamedTuple):
    """What a step reads of one layer, weights in the layout that `_project` wants."""

    into: Tensor
    into_bias: Tensor
    out: Tensor
    out_bias: Tensor
    norm1: Tensor
    norm1_bias: Tensor
    wide: Tensor
    wide_bias: Tensor
    narrow: Tensor
    narrow_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor


@dataclass
class SemanticCache:
    """What decoding remembers: keys and values of all columns so far, written in place, room reserved ahead.

    A row's phonemes, its prompt and its new tokens begin at the same column in all rows; padding between is hidden.
    """

    past: list[Tensor]
    """per layer (2, H, B, capacity, D / H): keys and values"""
    bias: Tensor
    """(1, B, 1, capacity): 0, and minus infinity where a column is padding or not yet written"""
    positions: Tensor
    """(B,) int64: the position of the next token of each row"""
    weights: list[LayerWeights]
    length: int
    """columns written so far: where the next token goes"""
    kernel: "DecodeKernel | None" = None
    """the step, where it is compiled; `weights` are not used then"""
    _view: tuple[Tensor, list[Tensor]] | None = field(default=None, init=False, repr=False)
    _arrays: list[np.ndarray] | None = field(default=None, init=False, repr=False)

    @property
    def capacity(self) -> int:
        return self.bias.shape[3]

    def window(self) -> tuple[Tensor, list[Tensor]]:
        """`bias` and `past` cut to the columns that the next step looks at; those ahead are hidden there."""
        if self._view is None or self._view[0].shape[3] <= self.length:
            needed = self.length + 1
            span = needed + -needed % SPAN_COLUMNS
            self._view = self.bias[..., :span], [past[..., :span, :] for past in self.past]
        return self._view

    def arrays(self) -> list[np.ndarray]:
        """`past` as it is, for the kernel."""
        if self._arrays is None:
            self._arrays = [past.numpy() for past in self.past]
        return self._arrays

    def reserve(self, columns: int) -> None:
        """Make room for `columns` more; doubles the capacity, so that repeated growth stays cheap."""
        if self.length + columns <= self.capacity:
            return
        extra = max(self.capacity, self.length + columns - self.capacity)
        self.past = [functional.pad(past, (0, 0, 0, extra)) for past in self.past]
        self.bias = functional.pad(self.bias, (0, extra), value=-torch.inf)
        self._view = self._arrays = None

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but `rows` (int64), whose order becomes that of the batch."""
        self.past = [past[:, :, rows] for past in self.past]
        self.bias, self.positions = self.bias[:, rows], self.positions[rows]
        self._view = self._arrays = None


@dataclass(frozen=True)
class LaidOut:
    """Weights laid out for decoding, and what they were laid out from."""

    state: tuple[int, list[tuple[int, int]]]
    weights: list[LayerWeights]


def lay_out(weight: Tensor, bias: Tensor, panel_width: int | None) -> tuple[Tensor, Tensor]:
    """Weight (N, K) and bias (N,) for `_project`: what a step reads lies in the order in which it is read.

    `panel_width` None: (K, N) without a copy; 0: (K, N), best for one row; R: panels (N / R, K, R), best for several.
    """
    if not panel_width:
        return weight.t() if panel_width is None else weight.t().contiguous(), bias
    if len(weight) % panel_width:
        panel_width = len(weight)
    return weight.unflatten(0, (-1, panel_width)).transpose(1, 2).contiguous(), bias.view(-1, 1, panel_width)


def _project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The linear layer of what `lay_out` gave, (B, K) -> (B, N)."""
    if weight.ndim == 2:
        return torch.addmm(bias, x, weight)
    return torch.baddbmm(bias, x.expand(len(weight), -1, -1), weight).transpose(0, 1).reshape(len(x), -1)


def _project_heads(x: Tensor, weight: Tensor, bias: Tensor, width: int) -> Tensor:
    """`_project` with the heads first, (B, K) -> (N / width, B, width); panels are as wide as a head."""
    if weight.ndim == 3:
        return torch.baddbmm(bias, x.expand(len(weight), -1, -1), weight)
    return torch.addmm(bias, x, weight).view(len(x), -1, width).transpose(0, 1)


def write(past: Tensor, column: int | Tensor, new: Tensor) -> None:
    """Put `new` (..., 1, N) into `past` (..., capacity, N) in place; a number is several times faster on a CPU."""
    if isinstance(column, int):
        past.select(-2, column).copy_(new.squeeze(-2))
    else:
        past.index_copy_(-2, column, new)


def layer_step(x: Tensor, column: int | Tensor, bias: Tensor, past: Tensor, weights: LayerWeights) -> Tensor:
    """`_Layer.forward` of one column per row without dropout, (B, D) -> (B, D)."""
    into, into_bias, out, out_bias, norm1, norm1_bias, wide, wide_bias, narrow, narrow_bias, norm2, norm2_bias = weights
    _, heads, batch, _, width = past.shape
    packed = _project_heads(x, into, into_bias, width).reshape(3, heads, batch, 1, width)
    write(past, column, packed[1:])
    mixed = functional.scaled_dot_product_attention(packed[0], past[0], past[1], attn_mask=bias)
    mixed = mixed.transpose(0, 1).reshape(x.shape)
    x = torch.layer_norm(_project(mixed, out, out_bias).add_(x), norm1.shape, norm1, norm1_bias)
    thought = _project(_project(x, wide, wide_bias).relu_(), narrow, narrow_bias)
    return torch.layer_norm(thought.add_(x), norm2.shape, norm2, norm2_bias)


class GraphedStep:
    """`TextToSemantic.step` for one cache on a CUDA device: captured once, then replayed without launching kernels.

    All reserved columns are in view at every step, so that no shape changes.
    """

    def __init__(self, network: "TextToSemantic", cache: SemanticCache) -> None:
        self.cache = cache
        self.tokens = torch.zeros_like(cache.positions)
        self.column = torch.tensor([cache.length], device=self.tokens.device)
        network.ar_audio_position.reach(cache.capacity)
        positions = cache.positions.clone()

        def decode() -> Tensor:
            return network.decode(self.tokens, self.column, cache.positions, cache.bias, cache.past, cache.weights)

        with torch.no_grad(), torch.cuda.device(self.tokens.device):
            # Libraries set themselves up in their first call, which cannot be captured.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                decode()
            torch.cuda.current_stream().wait_stream(aside)
            cache.positions.copy_(positions)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.logits = decode()

    def __call__(self, tokens: Tensor, cache: SemanticCache) -> Tensor:
        """Append one token per row (B,) and predict the next: logits (B, V), valid until the next call."""
        assert cache is self.cache, "a graph belongs to the cache it was captured with"
        assert cache.length < cache.capacity, "a captured cache cannot grow"
        self.tokens.copy_(tokens)
        self.column.fill_(cache.length)
        self.graph.replay()
        cache.length += 1
        return self.logits
