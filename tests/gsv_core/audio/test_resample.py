import numpy as np
import pytest

from gsv_core.audio.resample import resample


def _tone(hz, rate_hz, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


def _middle_level_db(wave):
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    return 20 * np.log10(max(np.sqrt(2 * np.mean(middle.astype(np.float64) ** 2)), 1e-12))


RATES = [(96_000, 32_000), (48_000, 32_000), (44_100, 32_000), (32_000, 16_000), (16_000, 32_000), (8_000, 32_000)]


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
def test_is_flat_to_nine_tenths_of_the_band(from_hz, to_hz):
    band_hz = min(from_hz, to_hz) / 2
    levels = [_middle_level_db(resample(_tone(share * band_hz, from_hz), from_hz, to_hz))
              for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9)]  # fmt: skip
    print(f"{from_hz} -> {to_hz}: {min(levels):.4f} to {max(levels):.4f} dB")
    assert max(map(abs, levels)) < 0.01


@pytest.mark.parametrize(("from_hz", "to_hz"), [pair for pair in RATES if pair[0] > pair[1]])
def test_nothing_above_the_band_comes_back_as_an_alias(from_hz, to_hz):
    tones = np.linspace(1.001 * to_hz / 2, 0.999 * from_hz / 2, 25)
    aliases = [_middle_level_db(resample(_tone(hz, from_hz), from_hz, to_hz)) for hz in tones]
    print(f"{from_hz} -> {to_hz}: the loudest alias is {max(aliases):.0f} dB")
    assert max(aliases) < -100


@pytest.mark.parametrize(("from_hz", "to_hz"), [pair for pair in RATES if pair[0] < pair[1]])
def test_a_higher_rate_holds_no_image_of_the_band(from_hz, to_hz):
    window = np.blackman(to_hz // 2)
    for hz in np.linspace(0.05, 0.9, 9) * from_hz / 2:
        spectrum = np.abs(
            np.fft.rfft(resample(_tone(hz, from_hz), from_hz, to_hz)[to_hz // 4 : to_hz * 3 // 4] * window)
        )
        above = spectrum[len(spectrum) * from_hz // to_hz :]
        assert 20 * np.log10(above.max() / spectrum.max()) < -100


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
