import numpy as np
import pytest

from gsv_core.audio.resample import resample


def _tone(hz, rate_hz, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


def _middle_level_db(wave):
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    return 20 * np.log10(max(np.sqrt(2 * np.mean(middle.astype(np.float64) ** 2)), 1e-12))


@pytest.mark.parametrize("from_hz", [44_100, 48_000])
def test_keeps_what_fits_and_removes_what_would_alias(from_hz):
    assert _middle_level_db(resample(_tone(14_400, from_hz), from_hz, 32_000)) == pytest.approx(0.0, abs=0.1)
    assert _middle_level_db(resample(_tone(17_600, from_hz), from_hz, 32_000)) < -100


def test_keeps_phase_length_and_channels():
    wave = np.stack([_tone(440, 44_100), _tone(880, 44_100)], axis=1)
    out = resample(wave, 44_100, 32_000)
    assert out.shape == (32_000, 2)
    assert out.dtype == np.float32
    assert np.abs(out[1000:-1000, 0] - _tone(440, 32_000)[1000:-1000]).max() < 1e-4
    assert np.abs(out[1000:-1000, 1] - _tone(880, 32_000)[1000:-1000]).max() < 1e-4


def test_equal_rates_and_empty_waves_change_nothing():
    wave = _tone(440, 16_000)
    assert np.array_equal(resample(wave, 16_000, 16_000), wave)
    assert resample(np.zeros(0, np.float32), 16_000, 32_000).shape == (0,)


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="positive"):
        resample(np.zeros(10, np.float32), 0, 16_000)
    with pytest.raises(ValueError, match="shape"):
        resample(np.zeros((1, 10, 2), np.float32), 8_000, 16_000)
