"""A wave to its loudness, its true peak, and the gain that brings it to a target.

Loudness is ITU-R BS.1770-4 integrated loudness (gated, K-weighted), through pyloudnorm with the "DeMan" filters, whose
coefficients follow the standard at every rate. True peak is the highest absolute value after fourfold oversampling, as
in the same standard's annex 2. Axes: T samples, C channels.
"""

import math

import numpy as np

from gsv_core.audio.resample import resample

TARGET_LUFS = -16.0
CEILING_DB = -1.0
LOUDNESS_BLOCK_S = 0.4
"""BS.1770 measures in blocks of this length; nothing shorter has a loudness."""
ABSOLUTE_GATE_LUFS = -70.0
"""Blocks below this count as silence in BS.1770."""

_OVERSAMPLING = 4
_PEAK_BLOCK_S = 2.0
_PEAK_OVERLAP_SAMPLES = 512
# The interpolator can raise a block's sample peak by a few dB, never by this much for a recorded signal.
_PEAK_HEADROOM = 4.0


def channel_means(wave: np.ndarray) -> np.ndarray:
    """(T,) -> () or (T, C) -> (C,): the mean of each channel, float64; zeros where there is no sample."""
    if not len(wave):
        return np.zeros(wave.shape[1:])
    # Column by column: numpy sums over the first axis of a few columns many times slower.
    columns = wave.reshape(len(wave), -1).T
    return np.array([column.mean(dtype=np.float64) for column in columns]).reshape(wave.shape[1:])


def remove_dc(wave: np.ndarray, means: np.ndarray | None = None) -> np.ndarray:
    """(T,) or (T, C) without the mean of each channel, float32. `means`, where they are known already."""
    return wave.astype(np.float32) - (channel_means(wave) if means is None else means).astype(np.float32)


def loudness_lufs(wave: np.ndarray, rate_hz: int) -> float | None:
    """Integrated loudness of (T,); None where there is none: under 0.4 s, or nothing above the gate at -70 LUFS."""
    if wave.ndim != 1:
        raise ValueError(f"loudness: expected a mono wave (T,), got shape {wave.shape}")
    if len(wave) < math.ceil(LOUDNESS_BLOCK_S * rate_hz) or not wave.any():
        return None
    import pyloudnorm

    meter = pyloudnorm.Meter(rate_hz, filter_class="DeMan", block_size=LOUDNESS_BLOCK_S)
    # pyloudnorm takes the mean of no blocks, with a warning, where the gate leaves none.
    with np.errstate(divide="ignore", invalid="ignore"):
        loudness = float(meter.integrated_loudness(wave.astype(np.float64)))
    return loudness if math.isfinite(loudness) and loudness > ABSOLUTE_GATE_LUFS else None


def true_peak_db(wave: np.ndarray, rate_hz: int) -> float:
    """Highest absolute value of (T,) between the samples too, in dB of full scale; -inf for digital silence."""
    if wave.ndim != 1:
        raise ValueError(f"true peak: expected a mono wave (T,), got shape {wave.shape}")
    peak = float(np.abs(wave).max(initial=0.0))
    if peak == 0.0:
        return -math.inf
    block = max(1, round(_PEAK_BLOCK_S * rate_hz))
    highest = peak
    for start in range(0, len(wave), block):
        piece = wave[max(0, start - _PEAK_OVERLAP_SAMPLES) : start + block + _PEAK_OVERLAP_SAMPLES]
        # Most blocks of speech stay far below the loudest sample: only the others can hold the peak.
        if np.abs(piece).max() * _PEAK_HEADROOM > highest:
            highest = max(highest, _oversampled_peak(piece, rate_hz, start))
    return 20.0 * math.log10(highest)


def gain_to_target_db(
    loudness: float, peak_db: float, *, target_lufs: float = TARGET_LUFS, ceiling_db: float = CEILING_DB
) -> float:
    """The gain to `target_lufs`, or less: no limiter follows, so the true peak may only rise to `ceiling_db`."""
    return min(target_lufs - loudness, ceiling_db - peak_db)


def shortfall_db(loudness: float, gain_db: float, *, target_lufs: float = TARGET_LUFS) -> float:
    """By how much a wave of this loudness stays below the target after the gain; 0 where it arrives."""
    return max(0.0, target_lufs - (loudness + gain_db))


def apply_gain(wave: np.ndarray, gain_db: float) -> np.ndarray:
    """`wave` times the gain, float32."""
    return (wave * np.float32(10.0 ** (gain_db / 20.0))).astype(np.float32)


def _oversampled_peak(piece: np.ndarray, rate_hz: int, start: int) -> float:
    """The peak of a block without its overlap, whose edges ring where the block was cut out."""
    fine = np.abs(resample(piece, rate_hz, _OVERSAMPLING * rate_hz))
    head = min(start, _PEAK_OVERLAP_SAMPLES) * _OVERSAMPLING // 2
    return float(fine[head : max(head + 1, len(fine))].max())
