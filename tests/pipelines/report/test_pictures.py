import io

import numpy as np
import pytest
from PIL import Image

from pipelines.report.pictures import outline, png, spectrogram_png

RATE_HZ = 16_000


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def test_a_png_is_read_back_by_another_program() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(png(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(("low", "high"), [(300.0, 1_000.0), (1_000.0, 4_000.0)])
def test_a_higher_tone_stands_higher(low: float, high: float) -> None:
    def row(hz: float) -> int:
        with Image.open(io.BytesIO(spectrogram_png(tone(hz), RATE_HZ))) as image:
            return int(np.asarray(image).astype(int).sum(axis=(1, 2)).argmax())

    assert row(high) < row(low)  # rows count from the top


@pytest.mark.parametrize("samples", [1, 3, 700, 100_000])
def test_silence_and_the_shortest_wave_have_a_picture(samples: int) -> None:
    wave = np.zeros(samples, np.float32)
    with Image.open(io.BytesIO(spectrogram_png(wave, RATE_HZ))) as image:
        assert image.size[1] == 96
    assert "polygon" in outline(wave, title="nothing")


def test_an_outline_reaches_as_far_as_the_wave_and_not_beyond_its_box() -> None:
    svg = outline(np.array([0.0, 1.0, -0.5, 3.0], np.float32), title='a "wave"', height=40)
    assert "1,0.0" in svg
    assert "3,0.0" in svg  # 3.0 is cut at full scale
    assert "2,30.0" in svg
    assert "&#34;wave&#34;" in svg
