"""16-bit WAV bytes come back as they went, as far as 16 bits and the file go."""

import io
import wave

import numpy as np
import pytest

from gsv_core.audio.wav import endless_header, pcm_bytes, read_wav, sized_header, wav_bytes


def test_wav_bytes_come_back_as_they_were() -> None:
    samples = np.array([0.0, 0.5, -1.0, 0.25, 1.0, 7.0], dtype=np.float32)
    back, rate_hz = read_wav(wav_bytes(samples, 24_000))
    assert rate_hz == 24_000
    assert back.dtype == np.float32
    highest = 32767 / 32768
    assert back.tolist() == [0.0, 0.5, -1.0, 0.25, highest, highest]


def test_a_header_before_samples_that_are_still_to_come() -> None:
    samples = np.sin(np.arange(1000) / 7)
    whole = wav_bytes(samples, 24_000)
    assert sized_header(24_000, 1000) + pcm_bytes(samples) == whole
    endless = endless_header(24_000) + pcm_bytes(samples)
    assert endless[44:] == whole[44:]
    back, rate_hz = read_wav(endless)
    assert rate_hz == 24_000
    assert np.array_equal(back, read_wav(whole)[0])


def test_a_stereo_or_truncated_wav_is_read_as_far_as_it_goes() -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.array([[1000, 3000]] * 10, dtype="<i2").tobytes())
    samples, rate_hz = read_wav(buffer.getvalue()[:-3])
    assert rate_hz == 16_000
    assert samples.tolist() == [2000 / 32768] * 9


def test_what_is_no_wav_of_sixteen_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes of a WAV"):
        read_wav(b"no audio at all")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(3)
        file.setframerate(16_000)
        file.writeframes(bytes(30))
    with pytest.raises(ValueError, match="got 24"):
        read_wav(buffer.getvalue())
