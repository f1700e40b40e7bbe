"""Waves to linear and mel spectrograms.

Magnitudes of a short-time Fourier transform; mel bands after Slaney (Auditory Toolbox, 1998), in natural logarithm.
Shapes: B batch, T samples, L frames, F bins of the Fourier transform, M mel bands.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

QUIETEST = 1e-5
"""Magnitudes below this count as this in the logarithm."""


@dataclass(frozen=True, kw_only=True)
class SpectrogramConfig:
    """How a wave becomes frames. The defaults are those of semantic-to-wave: 50 frames per second at 32 kHz."""

    rate_hz: int = 32_000
    n_fft: int = 2048
    hop: int = 640
    window: int = 2048
    mel_bands: int = 128
    fmin: float = 0.0
    fmax: float | None = None
    """In Hz; None is half the sample rate."""

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.window <= self.n_fft:
            raise ValueError(f"need 0 < hop <= window <= n_fft, got {self.hop}, {self.window}, {self.n_fft}")
        if not 0 <= self.fmin < self.highest_hz <= self.rate_hz / 2:
            raise ValueError(f"need 0 <= fmin < fmax <= {self.rate_hz / 2} Hz, got {self.fmin} and {self.fmax}")
        if self.mel_bands < 1:
            raise ValueError(f"need at least one mel band, got {self.mel_bands}")

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def highest_hz(self) -> float:
        return self.rate_hz / 2 if self.fmax is None else self.fmax


def linear_spectrogram(wave: Tensor, config: SpectrogramConfig) -> Tensor:
    """Magnitudes of `wave`: (B, T) -> (B, F, L), L = T // hop when n_fft - hop is even.

    Raises:
        ValueError: the wave is too short to be mirrored at its ends.
    """
    padding = (config.n_fft - config.hop) // 2
    if wave.ndim != 2 or wave.shape[1] <= padding:
        raise ValueError(f"expected a wave (B, T) of more than {padding} samples, got {tuple(wave.shape)}")
    mirrored = functional.pad(wave.unsqueeze(1), (padding, padding), mode="reflect").squeeze(1)
    spectrum = torch.stft(
        mirrored,
        config.n_fft,
        hop_length=config.hop,
        win_length=config.window,
        window=torch.hann_window(config.window, dtype=wave.dtype, device=wave.device),
        center=False,
        return_complex=True,
    )
    # The small constant keeps the gradient of the root finite in silence.
    return torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-8)


@lru_cache(maxsize=16)
def mel_filterbank(config: SpectrogramConfig) -> Tensor:
    """Triangles on the Slaney scale, each of unit area: (M, F) float32. Shared between callers: do not write to it."""
    # A tensor first made in inference mode could never be used in training afterwards.
    with torch.inference_mode(False):
        edges_hz = _mel_to_hz(
            torch.linspace(
                _hz_to_mel(config.fmin), _hz_to_mel(config.highest_hz), config.mel_bands + 2, dtype=torch.float64
            )
        )
        bins_hz = torch.linspace(0, config.rate_hz / 2, config.bins, dtype=torch.float64)
        lower, centre, upper = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
        rising = (bins_hz - lower) / (centre - lower)
        falling = (upper - bins_hz) / (upper - centre)
        triangles = torch.minimum(rising, falling).clamp(min=0)
        return (triangles * 2 / (upper - lower)).float()


def mel_of_linear(spectrogram: Tensor, config: SpectrogramConfig) -> Tensor:
    """Natural logarithm of the mel-weighted magnitudes: (B, F, L) -> (B, M, L)."""
    filters = mel_filterbank(config).to(device=spectrogram.device, dtype=spectrogram.dtype)
    return torch.log((filters @ spectrogram).clamp(min=QUIETEST))


def mel_spectrogram(wave: Tensor, config: SpectrogramConfig) -> Tensor:
    """`mel_of_linear` of the wave's `linear_spectrogram`: (B, T) -> (B, M, L)."""
    return mel_of_linear(linear_spectrogram(wave, config), config)


# The Slaney scale: linear with three mel per 200 Hz up to 1 kHz, then 27 mel per factor 6.4.
_KNEE_HZ = 1000.0
_KNEE_MEL = 15.0
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz * _KNEE_MEL / _KNEE_HZ if hz < _KNEE_HZ else _KNEE_MEL + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    linear = mel * _KNEE_HZ / _KNEE_MEL
    return torch.where(mel < _KNEE_MEL, linear, _KNEE_HZ * torch.exp(_LOG_STEP * (mel - _KNEE_MEL)))
