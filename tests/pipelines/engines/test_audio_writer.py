from pathlib import Path

import numpy as np
import pytest

from pipelines.engines.audio_writer import encode_audio
from pipelines.engines.decoder import decode
from tests.pipelines.engines.signals import speech_like, tone


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_lossless_files_hold_the_very_samples(suffix: str, tmp_path: Path) -> None:
    wave = np.stack([speech_like(1.0, 44_100), tone(1.0, 44_100)], axis=1)
    decoded = decode(encode_audio(tmp_path / f"a{suffix}", wave, 44_100))
    assert np.abs(decoded.wave - np.round(wave * 32767) / 32768).max() < 1e-7


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".wma", ".opus", ".webm"])
def test_lossy_files_keep_length_pitch_and_level(suffix: str, tmp_path: Path) -> None:
    wave = tone(2.0, 48_000)
    decoded = decode(encode_audio(tmp_path / f"a{suffix}", wave, 48_000))
    assert len(decoded.wave) / 48_000 == pytest.approx(2.0, abs=0.1)
    middle = decoded.wave[24_000:72_000, 0]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440
    assert np.std(middle) == pytest.approx(np.std(wave), rel=0.05)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".m4a", ".wma"])
def test_twice_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    wave = speech_like(1.0, 44_100)
    one, two = (encode_audio(tmp_path / f"{name}{suffix}", wave, 44_100).read_bytes() for name in "ab")
    assert one == two


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for name, wave, message in (
        ("a.xyz", tone(0.1, 8_000), "cannot write this format"),
        ("a.wav", np.zeros((10, 3), np.float32), "shape"),
        ("a.wav", np.full(10, np.nan, np.float32), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_audio(tmp_path / name, wave, 8_000)
