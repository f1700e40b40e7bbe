"""Small parts that several networks share: masks, weight-normalised convolutions, gated stacks.

Weight normalisation: Salimans and Kingma 2016, arXiv:1602.07868. Gated stacks: van den Oord et al. 2016,
arXiv:1609.03499. Shapes: B batch, C channels, L frames, G width of the timbre vector.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsv_core.networks.column_convolution import convolve_columns


def sequence_mask(lengths: Tensor, longest: int) -> Tensor:
    """True where an item still has a value: (B,) -> (B, longest) bool."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def frame_mask(lengths: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """The same as a factor for channels: (B,) -> (B, 1, longest), 1 inside and 0 in the padding."""
    return sequence_mask(lengths, longest).to(dtype).unsqueeze(1)


def slice_frames(values: Tensor, starts: Tensor, length: int) -> Tensor:
    """The `length` columns that begin at each item's own start: (B, C, L), (B,) int64 -> (B, C, length)."""
    columns = starts.unsqueeze(1) + torch.arange(length, device=values.device)
    return values.gather(2, columns.unsqueeze(1).expand(-1, values.shape[1], -1))


_Plain = TypeVar("_Plain", nn.Conv1d, nn.ConvTranspose1d)


class _WeightNorm(nn.Module):
    """Holds `weight_g`, `weight_v` and perhaps `bias` instead of a weight: weight = weight_g * weight_v / |weight_v|.

    The norm is taken per first axis, which in a transposed convolution is the input channel.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(weight.detach())
        self.weight_g = nn.Parameter(_norm_per_row(weight.detach()))
        self.bias = None if bias is None else nn.Parameter(bias.detach())
        self._kept: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        return torch._weight_norm(self.weight_v, self.weight_g, 0) if self._kept is None else self._kept

    def folded(self) -> nn.Module:
        """A plain convolution that computes the same."""
        raise NotImplementedError

    def _filled(self, plain: _Plain, weight: Tensor) -> _Plain:
        """`plain`, made on the meta device, with `weight` and our bias in place of its own."""
        plain.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=self.weight_v.requires_grad)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach(), requires_grad=self.bias.requires_grad)
        return plain


def fold_weight_norm(network: nn.Module) -> None:
    """Replace every weight-normalised part of `network`, in place, by a plain convolution of the same weight.

    For inference: a weight is then computed once and not in every call. The names of its tensors are no longer those of
    the files, so a folded network is never the one that is saved or trained.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, _WeightNorm):
            parent, _, own_name = name.rpartition(".")
            network.get_submodule(parent).register_module(own_name, module.folded())


@contextmanager
def weights_kept(network: nn.Module) -> Iterator[None]:
    """Inside the block frozen weight-normalised parts of `network` compute their weights once for all calls."""
    parts = [module for module in network.modules() if isinstance(module, _WeightNorm)]
    try:
        for part in parts:
            assert not part.weight_v.requires_grad, "a weight that trains is another after each step"
            part._kept = part.weight
        yield
    finally:
        for part in parts:
            part._kept = None


def _norm_per_row(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)


class WeightNormConv1d(_WeightNorm):
    """A weight-normalised convolution over frames: (B, C, L) -> (B, C', L'). Starts out as `nn.Conv1d` does."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        plain = nn.Conv1d(inputs, outputs, kernel, groups=groups, bias=bias)
        super().__init__(plain.weight, plain.bias)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def folded(self) -> nn.Conv1d:
        outputs, inputs, kernel = self.weight_v.shape
        plain = nn.Conv1d(
            inputs * self.groups,
            outputs,
            kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            device="meta",
        )
        return self._filled(plain, self.weight)


class WeightNormColumnConv2d(_WeightNorm):
    """A weight-normalised two-dimensional convolution that looks along columns only, its weight (C', C, kernel, 1).

    Takes the columns as items of the batch, (B, R, C) -> (B, R', C'), and a leaky ReLU with it. One-dimensional
    convolutions are up to twice as fast as two-dimensional ones of width 1; on a CPU they are matrix products.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> None:
        plain = nn.Conv2d(inputs, outputs, (kernel, 1))
        super().__init__(plain.weight, plain.bias)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor, slope: float | None = None) -> Tensor:
        assert self.bias is not None
        return _along_columns(x, self.weight.squeeze(3), self.bias, self.stride, self.padding, slope)

    def folded(self) -> nn.Conv1d:
        outputs, inputs, kernel, _ = self.weight_v.shape
        plain = _ColumnConvolution(inputs, outputs, kernel, stride=self.stride, padding=self.padding, device="meta")
        return self._filled(plain, self.weight.squeeze(3))


class _ColumnConvolution(nn.Conv1d):
    def forward(self, x: Tensor, slope: float | None = None) -> Tensor:
        assert self.bias is not None
        assert isinstance(self.padding, tuple)
        return _along_columns(x, self.weight, self.bias, self.stride[0], self.padding[0], slope)


def _along_columns(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, slope: float | None) -> Tensor:
    if x.device.type != "cuda":
        return convolve_columns(x, weight, bias, stride=stride, padding=padding, slope=slope)
    out = functional.conv1d(x.transpose(1, 2), weight, bias, stride, padding).transpose(1, 2)
    return out if slope is None else functional.leaky_relu(out, slope)


class WeightNormConvTranspose1d(_WeightNorm):
    """A weight-normalised transposed convolution: (B, C, L) -> (B, C', stride * L) where kernel - stride is even."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int) -> None:
        plain = nn.ConvTranspose1d(inputs, outputs, kernel, stride)
        super().__init__(plain.weight, plain.bias)
        self.stride, self.padding = stride, (kernel - stride) // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv_transpose1d(x, self.weight, self.bias, self.stride, self.padding)

    def folded(self) -> nn.ConvTranspose1d:
        inputs, outputs, kernel = self.weight_v.shape
        plain = nn.ConvTranspose1d(inputs, outputs, kernel, self.stride, self.padding, device="meta")
        return self._filled(plain, self.weight)


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of (B, C, L)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x.transpose(1, 2), self.gamma.shape, self.gamma, self.beta).transpose(1, 2)


class GatedStack(nn.Module):
    """Convolutions with a tanh-sigmoid gate, residual and skip paths, all conditioned on one timbre vector."""

    def __init__(self, channels: int, kernel: int, layers: int, timbre_width: int) -> None:
        super().__init__()
        self.channels = channels
        self.cond_layer = WeightNormConv1d(timbre_width, 2 * channels * layers, 1)
        self.in_layers = nn.ModuleList(
            WeightNormConv1d(channels, 2 * channels, kernel, padding=kernel // 2) for _ in range(layers)
        )
        # The last layer has no successor, so it feeds the skip path only.
        self.res_skip_layers = nn.ModuleList(
            WeightNormConv1d(channels, 2 * channels if layer < layers - 1 else channels, 1) for layer in range(layers)
        )

    def forward(self, x: Tensor, mask: Tensor, timbre: Tensor) -> Tensor:
        """(B, C, L), (B, 1, L), (B, G, 1) -> (B, C, L)."""
        conditions = self.cond_layer(timbre).chunk(len(self.in_layers), dim=1)
        skipped = torch.zeros_like(x)
        for into, out, condition in zip(self.in_layers, self.res_skip_layers, conditions, strict=True):
            signal, gate = (into(x) + condition).chunk(2, dim=1)
            passed = out(torch.tanh(signal) * torch.sigmoid(gate))
            if passed.shape[1] > self.channels:
                residual, passed = passed.split(self.channels, dim=1)
                x = (x + residual) * mask
            skipped = skipped + passed
        return skipped * mask
