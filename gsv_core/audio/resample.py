"""A wave at one rate to the same wave at another.

soxr's "HQ" recipe: flat to 0.9 of the lower Nyquist frequency and more than 130 dB down just above it, where
torchaudio's and swresample's defaults already lose the top or let aliases through. Axes: T samples, C channels.
"""

import numpy as np


def resample(wave: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """(T,) or (T, C) -> as many channels, T * to_hz / from_hz samples, float32; zero phase; equal rates change nothing.

    Raises:
        ValueError: a rate is not positive, or the wave has other axes.
    """
    if from_hz <= 0 or to_hz <= 0:
        raise ValueError(f"resample: rates must be positive, got {from_hz} and {to_hz} Hz")
    if wave.ndim not in (1, 2):
        raise ValueError(f"resample: expected a wave (T,) or (T, C), got shape {wave.shape}")
    single = np.ascontiguousarray(wave, dtype=np.float32)
    if from_hz == to_hz or not len(single):
        return single
    import soxr

    return np.asarray(soxr.resample(single, from_hz, to_hz, quality="HQ"), dtype=np.float32)
