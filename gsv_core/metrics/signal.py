"""A wave to numbers on its signal: noise, clipping, silence, bandwidth; and two waves to their distance.

Mel-cepstral distance: Kubichek 1993, "Mel-cepstral distance measure for objective speech quality assessment", with
dynamic time warping, since two readings of a sentence differ in pace.
Axes: T samples, L frames, M mel bands, K coefficients.
"""

import functools
import math

import numpy as np

from gsv_core.audio.resample import resample
from gsv_core.metrics.alignment import Warping, warp

FRAME_S = 0.02
_FLOOR = 1e-10  # power of a frame of digital silence, -100 dB
_SILENCE_BELOW_DB = 40.0
_SILENCE_FLOOR_DB = -60.0
_CLIPPED_AT = 0.999
CEPSTRA_RATE_HZ = 16_000
CEPSTRA_WINDOW = 512
CEPSTRA_HOP = 160
_MEL_BANDS = 40
_CEPSTRA_RMS = 0.1
_COEFFICIENTS = 13  # 1 to 13; the zeroth is loudness
_CEPSTRAL_DB = 10.0 / math.log(10.0) * math.sqrt(2.0)


def snr_db(wave: np.ndarray, rate_hz: int) -> float | None:
    """Speech level over noise level of (T,), in dB; higher is better.

    Frames of 20 ms are sorted by energy: the loudest tenth's mean is speech and noise, the quietest tenth's mean is the
    noise between words, as any clip of speech has pauses. Digital silence (below -100 dB) is left out: an editor's
    gap says nothing of the room. None for less than 0.2 s of sound. At most 100.
    """
    powers = frame_powers(wave, rate_hz)
    powers = np.sort(powers[powers > _FLOOR])
    tenth = len(powers) // 10
    if not tenth:
        return None
    noise, loud = float(powers[:tenth].mean()), float(powers[-tenth:].mean())
    return min(100.0, 10.0 * math.log10(max(loud - noise, noise * 1e-3) / noise))


def clipped_share(wave: np.ndarray) -> float:
    """Share of samples of (T,) in flat tops: runs of three and more, of one sign, at the wave's own peak.

    A converter that clips leaves them; levelling afterwards only scales them, so the limit is not full scale.
    """
    size = np.abs(wave)
    peak = float(size.max(initial=0.0))
    if peak == 0.0:
        return 0.0
    at_limit = size >= peak * _CLIPPED_AT
    # Runs of one sign: a flat top, not a tone that touches its peak now and then.
    flat = at_limit[1:-1] & at_limit[:-2] & at_limit[2:] & (np.sign(wave[:-2]) == np.sign(wave[2:]))
    inside = np.zeros(len(wave), dtype=bool)
    for shift in range(3):
        inside[shift : len(wave) - 2 + shift] |= flat
    return float(inside.mean())


def silence_share(wave: np.ndarray, rate_hz: int) -> float:
    """Share of 20 ms frames of (T,) 40 dB below the loudest tenth, or below -60 dB of full scale; 1 if empty."""
    powers = frame_powers(wave, rate_hz)
    if not len(powers):
        return 1.0
    loud_db = 10.0 * math.log10(max(float(np.quantile(powers, 0.9)), _FLOOR))
    threshold_db = max(loud_db - _SILENCE_BELOW_DB, _SILENCE_FLOOR_DB)
    return float((10.0 * np.log10(np.maximum(powers, _FLOOR)) < threshold_db).mean())


def bandwidth_hz(wave: np.ndarray, rate_hz: int, *, below_db: float = 60.0) -> float | None:
    """The highest frequency that (T,) really uses; None for silence or less than 0.1 s.

    The long-term power spectrum, smoothed over 250 Hz, is followed from the top down to the first band that lies less
    than `below_db` below the strongest one above 100 Hz. A telephone call kept at 48 kHz answers 4,000, not 24,000.
    """
    size = 1 << max(8, round(math.log2(rate_hz / 40)))
    if len(wave) < 0.1 * rate_hz or not wave.any():
        return None
    frames = _frames(np.pad(wave, (0, max(0, size - len(wave)))), size, size // 2)
    power = (np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1)) ** 2).mean(axis=0)
    hz_per_bin = rate_hz / size
    width = max(1, round(250.0 / hz_per_bin))
    smooth = np.convolve(power, np.full(width, 1.0 / width), mode="same")
    smooth_db = 10.0 * np.log10(np.maximum(smooth, 1e-20))
    lowest = math.ceil(100.0 / hz_per_bin)
    used = np.flatnonzero(smooth_db[lowest:] > smooth_db[lowest:].max() - below_db)
    return float((used[-1] + lowest) * hz_per_bin)


def mel_cepstral_distance(reference: np.ndarray, other: np.ndarray, rate_hz: int) -> float:
    """Mean distance in dB between the mel cepstra of two waves (T,) along the best warping of time; lower is better.

    0 for a wave and itself; 4 to 6 is what good synthesis reaches against a recording of the same sentence. Loudness
    drops out.

    Raises:
        ValueError: a wave is shorter than one frame of 32 ms.
    """
    return cepstral_warping(reference, other, rate_hz).mean_cost


def cepstral_warping(reference: np.ndarray, other: np.ndarray, rate_hz: int) -> Warping:
    """Which frames of two waves (T,) belong together, 100 a second; its mean cost is `mel_cepstral_distance`.

    Raises:
        ValueError: a wave is shorter than one frame of 32 ms.
    """
    left, right = (_cepstra(wave, rate_hz) for wave in (reference, other))
    squared = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2.0 * left @ right.T
    return warp(_CEPSTRAL_DB * np.sqrt(np.maximum(squared, 0.0)))


def _frames(wave: np.ndarray, size: int, hop: int) -> np.ndarray:
    """(T,) -> (L, size), only whole frames."""
    if len(wave) < size:
        return np.zeros((0, size), dtype=np.float32)
    return np.lib.stride_tricks.sliding_window_view(wave.astype(np.float32, copy=False), size)[::hop]


def frame_powers(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """(T,) -> (L,): the power of each 20 ms, without its mean."""
    size = round(FRAME_S * rate_hz)
    frames = _frames(wave, size, size).astype(np.float64)
    # Without the mean of each frame: an offset or rumble is no speech, and would hide the pauses.
    return frames.var(axis=1)


@functools.cache
def _filters() -> np.ndarray:
    """(bins, M): triangles evenly spaced on the mel scale (HTK's) from 0 to 8 kHz, each of height one."""
    top_mel = 2595.0 * math.log10(1.0 + CEPSTRA_RATE_HZ / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top_mel, _MEL_BANDS + 2) / 2595.0) - 1.0)
    bins = np.arange(CEPSTRA_WINDOW // 2 + 1) * CEPSTRA_RATE_HZ / CEPSTRA_WINDOW
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _log_mels(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """(T,) -> (L, M) natural logarithm of mel power, 100 frames per second."""
    audio = resample(wave, rate_hz, CEPSTRA_RATE_HZ)
    if len(audio) < CEPSTRA_WINDOW:
        raise ValueError(
            f"mel: expected at least {CEPSTRA_WINDOW / CEPSTRA_RATE_HZ:.3f} s, got {len(wave) / rate_hz:.3f} s"
        )
    frames = _frames(audio, CEPSTRA_WINDOW, CEPSTRA_HOP) * np.hanning(CEPSTRA_WINDOW).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    return np.log(np.maximum(power @ _filters(), 1e-8))


def _cepstra(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """(T,) -> (L, K): the cosine transform of the log mel spectrum without its zeroth coefficient."""
    # At one level, so that the floor under the logarithm lies equally deep in both waves.
    level = float(np.sqrt(np.mean(wave.astype(np.float64) ** 2)))
    wave = wave * np.float32(_CEPSTRA_RMS / level) if level else wave
    bands = (np.arange(_MEL_BANDS) + 0.5) * math.pi / _MEL_BANDS
    basis = np.cos(np.arange(1, _COEFFICIENTS + 1)[:, None] * bands[None, :]) * (2.0 / _MEL_BANDS) / 2.0
    return _log_mels(wave, rate_hz).astype(np.float64) @ basis.T
