"""Mel frames to a wave, in v3: BigVGAN v2 (Lee et al. 2023, arXiv:2206.04658) at 24 kHz, 256 samples per frame.

HiFi-GAN's generator with periodic activations in place of leaky ReLUs: snake (Ziyin et al. 2020, arXiv:2006.08195) with
a frequency and a magnitude per channel. A pointwise function of a sampled signal makes overtones above half the rate
that fold back as noise, so each activation runs at twice the rate, between two low-pass filters (Karras et al. 2021,
arXiv:2106.12423). Parameter names are those of the file. Every convolution is weight-normalised, nothing is activated
before a stage is stretched, and the wave is clipped instead of going through a tanh.
Shapes: B batch, M mel bands, L frames, C channels, T samples, between the stages those of that stage's rate.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsv_core.networks.generator import ResidualBlock, mean_of_blocks
from gsv_core.networks.layers import WeightNormConv1d, WeightNormConvTranspose1d
from gsv_core.networks.vocoder import VocoderConfig

TAPS = 12
"""Of the low-pass filters."""
CUTOFF = 0.25
"""Of the low-pass filters, in cycles per sample of the doubled rate: half of the original rate's half."""
HALF_TRANSITION = 0.3


_ONLY: Mapping[str, Any] = {
    "resblock": "1",
    "activation": "snakebeta",
    "snake_logscale": True,
    "use_tanh_at_final": False,
}
"""What a `config.json` must say of the parts that come in one form here."""


@dataclass(frozen=True, kw_only=True)
class BigVganConfig(VocoderConfig):
    """The defaults are those of NVIDIA's `bigvgan_v2_24khz_100band_256x`."""

    channels: int = 1536
    upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2)
    upsample_kernels: tuple[int, ...] = (8, 8, 4, 4, 4, 4)
    final_bias: bool = False


def read_settings(settings: Mapping[str, Any]) -> BigVganConfig:
    """The sizes in a `config.json` of BigVGAN.

    Raises:
        ValueError: a setting is missing, or asks for a network other than the one here.
    """
    for name, expected in _ONLY.items():
        if settings.get(name) != expected:
            raise ValueError(f"BigVGAN with {name} {settings.get(name)!r} is not known here, only {expected!r}")
    try:
        return BigVganConfig(
            mel_bands=settings["num_mels"],
            channels=settings["upsample_initial_channel"],
            upsample_rates=tuple(settings["upsample_rates"]),
            upsample_kernels=tuple(settings["upsample_kernel_sizes"]),
            block_kernels=tuple(settings["resblock_kernel_sizes"]),
            block_dilations=tuple(tuple(dilations) for dilations in settings["resblock_dilation_sizes"]),
            final_bias=settings["use_bias_at_final"],
        )
    except KeyError as error:
        raise ValueError(f"the settings of BigVGAN lack {error}") from error
    except TypeError as error:
        raise ValueError(f"the settings of BigVGAN have a value of the wrong kind: {error}") from error


class BigVganVocoder(nn.Module):
    """(B, M, L) -> (B, 1, T) in [-1, 1], T = L * hop."""

    def __init__(self, config: BigVganConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.conv_pre = WeightNormConv1d(config.mel_bands, channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
            self.ups.append(nn.Sequential(WeightNormConvTranspose1d(channels, channels // 2, kernel, stride=rate)))
            channels //= 2
            for block_kernel, dilations in zip(config.block_kernels, config.block_dilations, strict=True):
                self.resblocks.append(
                    ResidualBlock(channels, block_kernel, dilations, partial(FilteredSnake, channels))
                )
        self.activation_post = FilteredSnake(channels)
        self.conv_post = WeightNormConv1d(channels, 1, 7, padding=3, bias=config.final_bias)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        for stage, up in enumerate(self.ups):
            x = mean_of_blocks(self.resblocks, stage, len(self.config.block_kernels), up(x))
        return self.conv_post(self.activation_post(x)).clamp(-1, 1)


class FilteredSnake(nn.Module):
    """Double the rate, activate, halve the rate: (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = _Doubling()
        self.act = _Snake(channels)
        self.downsample = nn.Sequential(OrderedDict(lowpass=_Halving()))

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.downsample(self.act(self.upsample(x)))
        return halved


class _Snake(nn.Module):
    """x + sin²(frequency x) / magnitude, both per channel and kept as logarithms: (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        frequency, magnitude = self.alpha.exp().unsqueeze(1), self.beta.exp().unsqueeze(1)
        return x + torch.sin(x * frequency).square() / (magnitude + 1e-9)


class _LowPass(nn.Module):
    """Holds the taps of a filter as the file does; the ends of a signal are held for it."""

    filter: Tensor
    """(1, 1, TAPS)"""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", low_pass_taps().reshape(1, 1, TAPS))

    def taps(self, channels: int) -> Tensor:
        """(C, 1, TAPS): every channel is filtered alike."""
        return self.filter.expand(channels, -1, -1)


class _Doubling(_LowPass):
    """(B, C, T) -> (B, C, 2 T)."""

    def forward(self, x: Tensor) -> Tensor:
        channels, reach = x.shape[1], TAPS // 2 - 1
        held = functional.pad(x, (reach, reach), mode="replicate")
        # The factor makes up for the zeros between the values. What grew out of the held ends is cut off, and so is
        # what the filter adds to either side.
        return 2 * functional.conv_transpose1d(
            held, self.taps(channels), stride=2, padding=2 * reach + TAPS // 2 - 1, groups=channels
        )


class _Halving(_LowPass):
    """(B, C, 2 T) -> (B, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        held = functional.pad(x, (TAPS // 2 - 1, TAPS // 2), mode="replicate")
        return functional.conv1d(held, self.taps(channels), stride=2, groups=channels)


def low_pass_taps() -> Tensor:
    """A sinc under a Kaiser window, of sum 1: (TAPS,).

    The shape of the window follows from taps and transition by Kaiser's formulas (Oppenheim and Schafer, Discrete-Time
    Signal Processing, 7.5) for the attenuation in dB, which is above 50 here.
    """
    attenuation_db = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * HALF_TRANSITION + 7.95
    window = torch.kaiser_window(TAPS, periodic=False, beta=0.1102 * (attenuation_db - 8.7))
    taps = window * torch.sinc(2 * CUTOFF * (torch.arange(TAPS) - (TAPS - 1) / 2))
    return taps / taps.sum()
