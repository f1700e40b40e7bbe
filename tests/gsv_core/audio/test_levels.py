import math

import numpy as np
import pytest

from gsv_core.audio.levels import apply_gain, gain_to_target_db, loudness_lufs, remove_dc, shortfall_db, true_peak_db


def _tone(hz, rate_hz, seconds=3.0, level=1.0, phase=0.0):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz + phase)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [16_000, 32_000, 48_000])
def test_a_full_scale_sine_of_997_hz_has_the_loudness_of_the_standard(rate_hz):
    # BS.1770: -3.01 LKFS for one channel.
    assert loudness_lufs(_tone(997, rate_hz), rate_hz) == pytest.approx(-3.01, abs=0.05)


def test_what_has_no_loudness_answers_none():
    assert loudness_lufs(np.zeros(64_000, np.float32), 32_000) is None
    assert loudness_lufs(_tone(997, 32_000, seconds=0.39), 32_000) is None
    assert loudness_lufs(_tone(997, 32_000, level=1e-5), 32_000) is None
    assert loudness_lufs(np.zeros(0, np.float32), 32_000) is None
    assert loudness_lufs(_tone(997, 32_000, seconds=0.4), 32_000) is not None


def test_true_peak_sees_between_the_samples():
    # A quarter of the rate at 45 degrees: every sample is 3 dB below the crest.
    wave = _tone(8_000, 32_000, level=0.5, phase=math.pi / 4)
    assert 20 * math.log10(np.abs(wave).max()) == pytest.approx(-9.03, abs=0.01)
    # The last samples of a wave that breaks off ring a little above the crest.
    assert true_peak_db(wave, 32_000) == pytest.approx(-6.02, abs=0.7)
    assert true_peak_db(np.zeros(100, np.float32), 32_000) == -math.inf


@pytest.mark.parametrize("place", [0.01, 1.999, 2.0, 2.001, 5.5, 6.99])
def test_true_peak_of_a_long_wave_is_found_wherever_it_lies(place):
    rate_hz = 32_000
    wave = 0.01 * np.random.default_rng(1).standard_normal(7 * rate_hz).astype(np.float32)
    burst = _tone(8_000, rate_hz, seconds=0.01, level=0.5, phase=math.pi / 4) * np.hanning(320).astype(np.float32)
    at = min(round(place * rate_hz), len(wave) - len(burst))
    wave[at : at + len(burst)] += burst
    whole = true_peak_db(np.concatenate([np.zeros(1000, np.float32), wave[at - 300 : at + 700]]), rate_hz)
    assert true_peak_db(wave, rate_hz) == pytest.approx(whole, abs=0.02)


def test_the_gain_reaches_the_target_unless_the_peak_forbids():
    assert gain_to_target_db(-30.0, -20.0) == pytest.approx(14.0)
    assert gain_to_target_db(-30.0, -10.0) == pytest.approx(9.0)
    assert shortfall_db(-30.0, 9.0) == pytest.approx(5.0)
    assert shortfall_db(-30.0, 14.0) == 0.0
    wave = _tone(997, 32_000, level=0.1)
    levelled = apply_gain(wave, gain_to_target_db(loudness_lufs(wave, 32_000), true_peak_db(wave, 32_000)))
    assert levelled.dtype == np.float32
    assert loudness_lufs(levelled, 32_000) == pytest.approx(-16.0, abs=0.01)


def test_an_offset_is_removed_per_channel():
    wave = np.stack([_tone(100, 8_000) + 0.35, _tone(100, 8_000) - 0.2], axis=1)
    assert np.abs(remove_dc(wave).mean(axis=0)).max() < 1e-6
    assert remove_dc(np.zeros((0, 2), np.float32)).shape == (0, 2)
