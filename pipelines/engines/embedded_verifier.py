"""A wave to a speaker vector by the encoder that resemblyzer carries.

Three LSTM layers over windows of 1.6 s (Wan et al. 2018, "Generalized end-to-end loss for speaker verification",
arXiv:1710.10467); the vector of a wave is the mean over its windows. Weights are read from the installed package as
plain tensors; the package itself is not imported, because that would pull in librosa and webrtcvad. Clips come out of
voice activity detection already, so its own silence trimming is not repeated here.
Axes: B windows, L frames, M mel bands, T samples.
"""

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from gsv_core.audio.resample import resample
from pipelines.engines.packaged import package_version, packaged_file

_RATE_HZ = 16_000
_FFT_SAMPLES = 400
_HOP_SAMPLES = 160
_MEL_BANDS = 40
_HIDDEN = 256
_LAYERS = 3
_WINDOW_FRAMES = 160
_STEP_FRAMES = 77  # 1.3 windows per second
_LEAST_COVERAGE = 0.75  # of a last window that hangs over the end
_LEVEL_DB = -30.0  # quieter waves are raised to this RMS


class _Encoder(nn.Module):
    """Mel windows (B, L, M) -> (B, 256) of unit length. Attribute names are those of the packaged tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_MEL_BANDS, _HIDDEN, _LAYERS, batch_first=True)
        self.linear = nn.Linear(_HIDDEN, _HIDDEN)

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


class ResemblyzerVerifier:
    """Speaker vectors that neither condition our networks nor come from the same family as ECAPA."""

    width = _HIDDEN

    def __init__(self) -> None:
        self.name = f"resemblyzer {package_version('resemblyzer')}"
        checkpoint = torch.load(packaged_file("resemblyzer", "pretrained.pt"), map_location="cpu", weights_only=True)
        encoder = _Encoder()
        # The file also holds the scale and offset of the training loss, which scoring does not use.
        wanted = encoder.state_dict().keys()
        encoder.load_state_dict({name: tensor for name, tensor in checkpoint["model_state"].items() if name in wanted})
        self._encoder = encoder.eval().requires_grad_(False)
        self._window = torch.hann_window(_FFT_SAMPLES)
        self._filters = torchaudio.functional.melscale_fbanks(
            _FFT_SAMPLES // 2 + 1, 0.0, _RATE_HZ / 2, _MEL_BANDS, _RATE_HZ, norm="slaney", mel_scale="slaney"
        )

    def embed(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        """`wave` (T,) -> (256,) float32 of unit length.

        Raises:
            ValueError: the wave is not mono, or silent: silence has no speaker.
        """
        if wave.ndim != 1 or not wave.any():
            raise ValueError(f"resemblyzer: expected a mono wave (T,) with sound in it, got shape {wave.shape}")
        audio = resample(wave, rate_hz, _RATE_HZ).astype(np.float64)
        level_db = 10.0 * np.log10(np.mean(audio**2))
        audio *= 10.0 ** (max(0.0, _LEVEL_DB - level_db) / 20.0)
        starts = _window_starts(len(audio))
        covered = (starts[-1] + _WINDOW_FRAMES) * _HOP_SAMPLES
        audio = np.pad(audio, (0, max(0, covered - len(audio))))
        mels = self._mels(torch.from_numpy(audio.astype(np.float32)))
        with torch.inference_mode():
            vectors = self._encoder(torch.stack([mels[start : start + _WINDOW_FRAMES] for start in starts]))
        mean = vectors.mean(dim=0)
        return (mean / mean.norm()).numpy()

    def _mels(self, audio: Tensor) -> Tensor:
        """(T,) -> (L, M): mel power, not its logarithm."""
        spectrum = torch.stft(
            audio,
            _FFT_SAMPLES,
            _HOP_SAMPLES,
            window=self._window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum.abs().square().T @ self._filters


def _window_starts(num_samples: int) -> list[int]:
    """First frames of the windows over a wave; a last one that lies mostly past the end is left out."""
    frames = -(-(num_samples + 1) // _HOP_SAMPLES)
    starts = list(range(0, max(1, frames - _WINDOW_FRAMES + _STEP_FRAMES + 1), _STEP_FRAMES))
    covered = (num_samples - starts[-1] * _HOP_SAMPLES) / (_WINDOW_FRAMES * _HOP_SAMPLES)
    return starts[:-1] if len(starts) > 1 and covered < _LEAST_COVERAGE else starts
