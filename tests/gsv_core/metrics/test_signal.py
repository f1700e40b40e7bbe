import numpy as np
import pytest

from gsv_core.audio.resample import resample
from gsv_core.metrics.signal import (
    bandwidth_hz,
    clipped_share,
    mel_cepstral_distance,
    silence_share,
    snr_db,
)

RATE_HZ = 16_000


def _noise(seconds, level, seed=0, rate_hz=RATE_HZ):
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))).astype(np.float32)


def _bursts(seconds, level=0.2, seed=1):
    """Noise that is on for 0.3 s and off for 0.3 s."""
    wave = _noise(seconds, level, seed)
    wave[(np.arange(len(wave)) // round(0.3 * RATE_HZ)) % 2 == 1] = 0.0
    return wave


@pytest.mark.parametrize("expected_db", [10.0, 20.0, 40.0])
def test_snr_of_a_known_mixture(expected_db):
    wave = _bursts(6.0) + _noise(6.0, 0.2 * 10 ** (-expected_db / 20), seed=2)
    assert snr_db(wave, RATE_HZ) == pytest.approx(expected_db, abs=2.0)
    assert snr_db(0.01 * wave, RATE_HZ) == pytest.approx(snr_db(wave, RATE_HZ), abs=0.1)


def test_snr_of_steady_noise_is_low_and_silence_has_none():
    assert snr_db(_noise(5.0, 0.1), RATE_HZ) < 0.0
    assert snr_db(np.zeros(RATE_HZ, np.float32), RATE_HZ) is None
    assert snr_db(_noise(0.1, 0.1), RATE_HZ) is None


def test_clipping_is_seen_whatever_the_level():
    tone = np.sin(2 * np.pi * 200 * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
    assert clipped_share(0.9 * tone) < 0.03  # a crest spans a few samples
    hard = np.clip(3.0 * tone, -1.0, 1.0)
    assert clipped_share(hard) == pytest.approx(1 - 2 * np.arcsin(1 / 3) / np.pi, abs=0.03)
    assert clipped_share(0.2 * hard) == clipped_share(hard)
    assert clipped_share(_noise(1.0, 0.1)) == 0.0
    assert clipped_share(np.zeros(0, np.float32)) == 0.0


def test_silence_share():
    assert silence_share(_bursts(6.0), RATE_HZ) == pytest.approx(0.5, abs=0.01)
    assert silence_share(_bursts(6.0) + np.float32(0.35), RATE_HZ) == pytest.approx(
        0.5, abs=0.01
    )  # an offset hides nothing
    assert silence_share(np.zeros(RATE_HZ, np.float32), RATE_HZ) == 1.0
    assert silence_share(_noise(1.0, 0.1), RATE_HZ) == 0.0


@pytest.mark.parametrize("original_hz", [8_000, 16_000, 22_050])
def test_bandwidth_is_that_of_the_original(original_hz):
    wave = resample(_noise(3.0, 0.1, rate_hz=original_hz), original_hz, 48_000)
    assert bandwidth_hz(wave, 48_000) == pytest.approx(original_hz / 2, rel=0.08)


def test_bandwidth_of_silence_and_blips_is_unknown():
    assert bandwidth_hz(np.zeros(RATE_HZ, np.float32), RATE_HZ) is None
    assert bandwidth_hz(_noise(0.05, 0.1), RATE_HZ) is None


def _sweep(seconds, level=0.3):
    phase = np.linspace(0.0, 1.0, round(seconds * RATE_HZ))
    pitch = 2 * np.pi * np.cumsum(100 + 60 * np.sin(2 * np.pi * phase)) / RATE_HZ
    colour = np.exp(-np.arange(1, 30)[:, None] * (0.05 + 0.3 * np.sin(np.pi * phase) ** 2))
    return (level * (colour * np.sin(np.arange(1, 30)[:, None] * pitch)).sum(axis=0) / 5).astype(np.float32)


def test_mel_cepstral_distance_ignores_level_and_pace_but_not_content():
    wave = _sweep(2.0)
    noise = _noise(2.0, 0.1)
    assert mel_cepstral_distance(wave, wave, RATE_HZ) == pytest.approx(0.0, abs=1e-5)
    assert mel_cepstral_distance(wave, 0.3 * wave, RATE_HZ) < 0.5
    slower, different = mel_cepstral_distance(wave, _sweep(2.6), RATE_HZ), mel_cepstral_distance(wave, noise, RATE_HZ)
    assert slower < 0.3 * different
    assert mel_cepstral_distance(noise, wave, RATE_HZ) == pytest.approx(different, rel=0.05)
