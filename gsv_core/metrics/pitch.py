"""A wave to its pitch frame by frame, and two pitches to their difference.

YIN: de Cheveigné and Kawahara 2002, "YIN, a fundamental frequency estimator for speech and music". Steps 1 to 5 of it:
difference function, cumulative mean normalisation, absolute threshold, parabolic interpolation. Frames are those of
`signal.cepstral_warping`: 100 a second, so that the two go together.
Axes: T samples, L frames, W samples of a window.
"""

import math
from dataclasses import dataclass

import numpy as np

from gsv_core.audio.resample import resample
from gsv_core.metrics.signal import CEPSTRA_HOP, CEPSTRA_RATE_HZ, CEPSTRA_WINDOW

LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
_WINDOW = 512
_THRESHOLD = 0.15
_SILENCE_BELOW_DB = 40.0
_FFT = 2048
_FRAMES_AT_ONCE = 1024


@dataclass(frozen=True)
class PitchError:
    """How far two readings of a sentence are apart in melody; lower is better.

    `rmse_cents` is over the frames that are voiced in both, None where there are none; 100 cents are a semitone.
    `voicing_error` is the share of frames that are voiced in one alone.
    """

    rmse_cents: float | None
    voicing_error: float


def track_pitch(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """(T,) -> (L,) in Hz, 100 frames a second; 0 where there is no voice, or the wave is shorter than a frame."""
    audio = resample(wave, rate_hz, CEPSTRA_RATE_HZ).astype(np.float64)
    count = 1 + (len(audio) - CEPSTRA_WINDOW) // CEPSTRA_HOP
    if count < 1:
        return np.zeros(0)
    longest = math.ceil(CEPSTRA_RATE_HZ / LOWEST_HZ) + 1
    size = _WINDOW + longest
    # In the middle of the frame the window and its farthest copy lie evenly about it.
    lead = (size - CEPSTRA_WINDOW) // 2
    padded = np.pad(audio - audio.mean(), (lead, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::CEPSTRA_HOP][:count]
    power = (frames**2).mean(axis=1)
    loud = np.quantile(power, 0.9)
    sounding = power > loud * 10.0 ** (-_SILENCE_BELOW_DB / 10.0)
    pitch = np.zeros(count)
    for start in range(0, count, _FRAMES_AT_ONCE):
        part = slice(start, start + _FRAMES_AT_ONCE)
        pitch[part] = _pitch_of(_normalised_difference(frames[part], longest))
    return np.where(sounding & (power > 0), pitch, 0.0)


def pitch_error(reference: np.ndarray, other: np.ndarray, path: np.ndarray) -> PitchError:
    """Two pitches (L,), (L',) and the path (N, 2) that pairs their frames -> their difference."""
    last = np.array([len(reference), len(other)]) - 1
    first, second = np.minimum(path, last).T
    expected, spoken = reference[first], other[second]
    both = (expected > 0) & (spoken > 0)
    cents = 1200.0 * np.log2(spoken[both] / expected[both])
    return PitchError(
        rmse_cents=float(np.sqrt(np.mean(cents**2))) if both.any() else None,
        voicing_error=float(((expected > 0) != (spoken > 0)).mean()),
    )


def _normalised_difference(frames: np.ndarray, longest: int) -> np.ndarray:
    """(L, W + longest) -> (L, longest + 1): the paper's d', equations 6 and 8, by lag from 0."""
    head = frames[:, :_WINDOW]
    spectrum = np.fft.rfft(frames, _FFT, axis=1)
    correlation = np.fft.irfft(spectrum * np.fft.rfft(head, _FFT, axis=1).conj(), _FFT, axis=1)[:, : longest + 1]
    sums = np.pad(np.cumsum(frames**2, axis=1), ((0, 0), (1, 0)))
    energy = sums[:, _WINDOW : _WINDOW + longest + 1] - sums[:, : longest + 1]
    difference = np.maximum(energy[:, :1] + energy - 2.0 * correlation, 0.0)
    lags = np.arange(1, longest + 1)
    means = np.cumsum(difference[:, 1:], axis=1) / lags
    normalised = np.ones_like(difference)
    np.divide(difference[:, 1:], means, out=normalised[:, 1:], where=means > 1e-12)
    return normalised


def _pitch_of(normalised: np.ndarray) -> np.ndarray:
    """(L, lags) -> (L,) Hz: the first dip below the threshold, its bottom found between the lags; 0 without a dip."""
    shortest = math.floor(CEPSTRA_RATE_HZ / HIGHEST_HZ)
    low, middle, high = (normalised[:, shortest + shift : normalised.shape[1] - 2 + shift] for shift in range(3))
    dips = (middle < _THRESHOLD) & (middle <= high) & (middle < low)
    found = dips.any(axis=1)
    place = dips.argmax(axis=1)
    lane = np.arange(len(normalised))
    before, bottom, after = low[lane, place], middle[lane, place], high[lane, place]
    bend = before - 2.0 * bottom + after
    shift = np.where(bend > 0, 0.5 * (before - after) / np.where(bend > 0, bend, 1.0), 0.0)
    return np.where(found, CEPSTRA_RATE_HZ / (place + shortest + 1 + shift), 0.0)
