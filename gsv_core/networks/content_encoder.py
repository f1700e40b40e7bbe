"""A wave to content features: what is said, frame by frame, with little of who says it.

`HubertContentEncoder` runs a HuBERT (Hsu et al. 2021, arXiv:2106.07447) from a folder, as every published base model
needs it; `MelContentEncoder` is arithmetic and needs nothing. Both give 50 frames per second of a 16 kHz wave.
Shapes: T samples, L frames, C width of the content features.
"""

import hashlib
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gsv_core.audio.spectrogram import SpectrogramConfig, mel_spectrogram
from gsv_core.networks.pretrained import check_complete, folder_digest

RATE_HZ = 16_000
FRAMES_PER_SECOND = 50


class ContentEncoder(Protocol):
    """What makes content features. `digest` (64 hex digits) changes whenever the features would."""

    name: str
    digest: str
    width: int
    rate_hz: int
    frames_per_second: int

    def encode(self, wave: Tensor | np.ndarray) -> Tensor:
        """`wave` (T,) in [-1, 1] at `rate_hz` -> (L, C) float32.

        Raises:
            ValueError: the wave is too short for a single frame.
        """
        ...


class HubertContentEncoder:
    """The last hidden layer of a HuBERT in transformers' own folder format (CN-HuBERT for the published bases).

    One clip at a time: the first layer normalises over time, so padding would change the result. The wave's scale drops
    out there too.
    """

    rate_hz = RATE_HZ
    frames_per_second = FRAMES_PER_SECOND

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Raises: ValueError when the folder is incomplete or holds something else."""
        from transformers import HubertModel

        self.digest = folder_digest(folder)
        self.name = f"hubert:{folder.name}"
        network, loading = HubertModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        check_complete(folder, loading, unused=("masked_spec_embed",))
        if prod(network.config.conv_stride) * FRAMES_PER_SECOND != RATE_HZ:
            raise ValueError(f"{folder}: strides {network.config.conv_stride} do not give 50 frames per second")
        self.width: int = network.config.hidden_size
        self._network = network.eval().to(device)

    @property
    def shortest(self) -> int:
        """Samples that make one frame."""
        samples = 1
        for kernel, stride in zip(
            reversed(self._network.config.conv_kernel), reversed(self._network.config.conv_stride), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples

    @torch.inference_mode()
    def encode(self, wave: Tensor | np.ndarray) -> Tensor:
        samples = _as_wave(wave, self.shortest)
        return self._network(samples.unsqueeze(0).to(self._network.device)).last_hidden_state[0].float().cpu()


class MelContentEncoder:
    """Log-mel bands, each with zero mean and unit variance over the clip, which takes out level and average timbre."""

    rate_hz = RATE_HZ
    frames_per_second = FRAMES_PER_SECOND

    def __init__(self, bands: int = 32) -> None:
        self.width = bands
        self.name = f"mel-{bands}"
        self._config = SpectrogramConfig(
            rate_hz=RATE_HZ, n_fft=1024, hop=RATE_HZ // FRAMES_PER_SECOND, window=1024, mel_bands=bands, fmin=60.0
        )
        self.digest = hashlib.sha256(f"{self.name} normalised per clip, {self._config}".encode()).hexdigest()

    @property
    def shortest(self) -> int:
        """Samples that can be mirrored at the ends, the least a spectrogram takes."""
        return (self._config.n_fft - self._config.hop) // 2 + 1

    @torch.inference_mode()
    def encode(self, wave: Tensor | np.ndarray) -> Tensor:
        bands = mel_spectrogram(_as_wave(wave, self.shortest).unsqueeze(0), self._config)[0].T
        spread = bands.std(dim=0, correction=0)
        # A band without any variation, as in digital silence, becomes zero instead of amplified rounding.
        return (bands - bands.mean(dim=0)) / spread.clamp(min=1e-3)


def _as_wave(wave: Tensor | np.ndarray, shortest: int) -> Tensor:
    samples = torch.as_tensor(wave, dtype=torch.float32)
    if samples.ndim != 1 or samples.shape[0] < shortest:
        raise ValueError(f"expected a wave (T,) of {shortest} samples or more, got {tuple(samples.shape)}")
    return samples
