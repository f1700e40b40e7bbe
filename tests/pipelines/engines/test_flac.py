import numpy as np
import pytest

from pipelines.engines.flac import decode_flac, encode_flac
from tests.pipelines.engines.signals import speech_like, tone


def test_round_trip_is_exact_to_half_a_step_and_the_same_bytes_twice():
    wave = speech_like(1.0, 32_000)
    data = encode_flac(wave, 32_000)
    decoded, rate_hz = decode_flac(data)
    assert rate_hz == 32_000
    assert decoded.dtype == np.float32
    assert np.abs(decoded - wave).max() <= 0.5 / 32_768 + 1e-9
    assert encode_flac(wave, 32_000) == data
    # What was decoded encodes to itself: no drift by storing again.
    assert encode_flac(decoded, 32_000) == data


def test_full_scale_survives_without_wrapping():
    wave = np.array([1.0, -1.0, 0.0] * 100, np.float32)
    decoded, _ = decode_flac(encode_flac(wave, 32_000))
    assert np.abs(decoded - wave).max() <= 1 / 32_768


@pytest.mark.parametrize("wave", [np.zeros(0), np.zeros((10, 2)), 3 * tone(0.1, 8_000), np.array([0.0, np.nan])])
def test_what_16_bits_cannot_hold_is_refused(wave):
    with pytest.raises(ValueError, match="flac"):
        encode_flac(wave.astype(np.float32), 32_000)


def test_other_bytes_are_refused():
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_flac(b"fLaC and nothing more")
