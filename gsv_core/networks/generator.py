"""Latent frames and timbre to a wave: HiFi-GAN's generator (Kong et al. 2020, arXiv:2010.05646).

Shapes: B batch, Z latent channels, L frames, C channels, T samples, G width of the timbre vector.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsv_core.networks.layers import WeightNormConv1d, WeightNormConvTranspose1d

SLOPE = 0.1
"""Of every leaky ReLU but the last."""


class Generator(nn.Module):
    """(B, Z, L), (B, G, 1) -> (B, 1, T) in [-1, 1], T = L times the product of the rates.

    Each stage stretches time by its rate, halves the channels and averages one residual block per kernel.
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
        timbre_width: int,
    ) -> None:
        super().__init__()
        self.blocks_per_stage = len(block_kernels)
        self.conv_pre = nn.Conv1d(latent, channels, 7, padding=3)
        self.cond = nn.Conv1d(timbre_width, channels, 1)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(rates, kernels, strict=True):
            self.ups.append(WeightNormConvTranspose1d(channels, channels // 2, kernel, stride=rate))
            channels //= 2
            for block_kernel, dilations in zip(block_kernels, block_dilations, strict=True):
                self.resblocks.append(_ResidualBlock(channels, block_kernel, dilations))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=False)

    def forward(self, latent: Tensor, timbre: Tensor) -> Tensor:
        x = self.conv_pre(latent) + self.cond(timbre)
        for stage, up in enumerate(self.ups):
            x = up(functional.leaky_relu(x, SLOPE))
            start = stage * self.blocks_per_stage
            blocks = self.resblocks[start : start + self.blocks_per_stage]
            x = sum(block(x) for block in blocks) / self.blocks_per_stage
        return torch.tanh(self.conv_post(functional.leaky_relu(x)))


class _ResidualBlock(nn.Module):
    """Per dilation: x + convolution(dilated convolution(x)): (B, C, L) -> (B, C, L)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            WeightNormConv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel // 2))
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(
            WeightNormConv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(functional.leaky_relu(dilated(functional.leaky_relu(x, SLOPE)), SLOPE))
        return x
