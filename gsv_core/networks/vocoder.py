"""Mel frames to a wave, in v4: HiFi-GAN's generator (Kong et al. 2020, arXiv:2010.05646) at 48 kHz.

The mel spectrogram goes in as it is, in natural logarithm; 100 frames per second become 480 samples each. Parameter
names are those of the file, which holds plain weights: its weight normalisation was folded before it was published.
Shapes: B batch, M mel bands, L frames, T samples.
"""

from dataclasses import dataclass
from math import prod

from gsv_core.networks.generator import Generator
from gsv_core.networks.layers import fold_weight_norm


@dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """Sizes of a vocoder. The defaults are those of v4."""

    mel_bands: int = 100
    channels: int = 512
    """Before the first stage; each halves them."""
    upsample_rates: tuple[int, ...] = (10, 6, 2, 2, 2)
    upsample_kernels: tuple[int, ...] = (20, 12, 4, 4, 4)
    block_kernels: tuple[int, ...] = (3, 7, 11)
    block_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    final_bias: bool = True

    def __post_init__(self) -> None:
        rates, kernels = self.upsample_rates, self.upsample_kernels
        if len(rates) != len(kernels) or any(
            kernel < rate or (kernel - rate) % 2 for rate, kernel in zip(rates, kernels)
        ):
            raise ValueError(f"need an upsample kernel per rate, larger by an even number, got {kernels} for {rates}")
        if len(self.block_kernels) != len(self.block_dilations):
            raise ValueError("need one tuple of dilations per block kernel")
        if self.mel_bands < 1 or self.channels < 2 ** len(rates):
            raise ValueError(f"{self.mel_bands} mel bands and {self.channels} channels cannot pass {len(rates)} stages")

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return prod(self.upsample_rates)


class HifiGanVocoder(Generator):
    """(B, M, L) -> (B, 1, T) in [-1, 1], T = L * hop."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__(
            config.mel_bands,
            config.channels,
            rates=config.upsample_rates,
            kernels=config.upsample_kernels,
            block_kernels=config.block_kernels,
            block_dilations=config.block_dilations,
            timbre_width=None,
            final_bias=config.final_bias,
        )
        self.config = config
        fold_weight_norm(self)
