"""Frames, and perhaps a timbre, to a wave: HiFi-GAN's generator (Kong et al. 2020, arXiv:2010.05646).

The last part of semantic-to-wave, on latent frames, and the vocoder of v4, on mel frames. Never rounded to bfloat16:
noise 30 to 40 dB below the wave would cover the upper bands of speech, and what is learnt from their mel spectrogram.
Shapes: B batch, Z input channels, L frames, C channels, T samples, G width of the timbre vector.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gsv_core.networks.layers import WeightNormConv1d, WeightNormConvTranspose1d
from gsv_core.networks.rounding import finely, unrounded

SLOPE = 0.1
"""Of every leaky ReLU but the last."""


class Generator(nn.Module):
    """(B, Z, L), (B, G, 1) -> (B, 1, T) in [-1, 1], T = L times the product of the rates.

    Each stage stretches time by its rate, halves the channels and averages one residual block per kernel. Without a
    `timbre_width` there is no timbre.
    """

    def __init__(
        self,
        latent: int,
        channels: int,
        *,
        rates: tuple[int, ...],
        kernels: tuple[int, ...],
        block_kernels: tuple[int, ...],
        block_dilations: tuple[tuple[int, ...], ...],
        timbre_width: int | None,
        final_bias: bool = False,
    ) -> None:
        super().__init__()
        self.blocks_per_stage = len(block_kernels)
        self.conv_pre = nn.Conv1d(latent, channels, 7, padding=3)
        self.cond = None if timbre_width is None else nn.Conv1d(timbre_width, channels, 1)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(rates, kernels, strict=True):
            self.ups.append(WeightNormConvTranspose1d(channels, channels // 2, kernel, stride=rate))
            channels //= 2
            for block_kernel, dilations in zip(block_kernels, block_dilations, strict=True):
                self.resblocks.append(ResidualBlock(channels, block_kernel, dilations))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=final_bias)

    def forward(self, latent: Tensor, timbre: Tensor | None = None, *, recompute: bool = False) -> Tensor:
        """`recompute`: keep no activations of the stages for the backward pass and compute them again there."""
        if (self.cond is None) != (timbre is None):
            raise ValueError("this generator needs a timbre" if timbre is None else "this generator takes no timbre")
        own = self.conv_pre.weight.dtype
        with finely(latent):
            x = self.conv_pre(latent.to(own))
            if self.cond is not None and timbre is not None:
                x = x + self.cond(timbre.to(own))
            for stage in range(len(self.ups)):
                x = checkpoint(self._stage, stage, x, use_reentrant=False) if recompute else self._stage(stage, x)
        with unrounded(x):
            return torch.tanh(self.conv_post(functional.leaky_relu(x.to(own))))

    def _stage(self, stage: int, x: Tensor) -> Tensor:
        return mean_of_blocks(
            self.resblocks, stage, self.blocks_per_stage, self.ups[stage](functional.leaky_relu(x, SLOPE))
        )


def mean_of_blocks(blocks: nn.ModuleList, stage: int, count: int, x: Tensor) -> Tensor:
    """The mean over what the `count` residual blocks of `stage` make of `x`: (B, C, L) -> (B, C, L)."""
    total = blocks[stage * count](x)
    for block in blocks[stage * count + 1 : (stage + 1) * count]:
        total = total + block(x)
    return total / count


class ResidualBlock(nn.Module):
    """Per dilation: x + convolution(dilated convolution(x)), an activation before each: (B, C, L) -> (B, C, L)."""

    def __init__(
        self,
        channels: int,
        kernel: int,
        dilations: tuple[int, ...],
        activation: Callable[[], nn.Module] = lambda: nn.LeakyReLU(SLOPE),
    ) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            WeightNormConv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel // 2))
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(
            WeightNormConv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations
        )
        self.activations = nn.ModuleList(activation() for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        before_dilated, before_plain = self.activations[::2], self.activations[1::2]
        for first, dilated, second, plain in zip(before_dilated, self.convs1, before_plain, self.convs2, strict=True):
            x = x + plain(second(dilated(first(x))))
        return x
