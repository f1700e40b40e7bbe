from importlib.util import find_spec

import numpy as np
import pytest

from gsv_core.audio.resample import resample
from gsv_core.metrics.signal import snr_db
from pipelines.engines import separator
from pipelines.engines.decoder import decode
from pipelines.engines.separator import RnnoiseSeparator, load_separator, separator_versions
from pipelines.rows import RATE_HZ
from tests.shared import shared_path


@pytest.fixture(scope="module")
def rnnoise() -> RnnoiseSeparator:
    if find_spec("pyrnnoise") is None:
        pytest.skip("the extra `separation` is not installed")
    return RnnoiseSeparator()


def test_real_speech_loses_its_noise_and_nothing_is_moved(rnnoise: RnnoiseSeparator) -> None:
    decoded = decode(shared_path("recordings/voices/fleurs_ja_1837/fleurs_ja_1837.wav"))
    wave = resample(decoded.wave[:, 0], decoded.rate_hz, RATE_HZ)[: 5 * RATE_HZ]
    spoken = rnnoise.separate(wave, RATE_HZ)
    assert spoken.shape == wave.shape
    assert spoken.dtype == np.float32
    assert snr_db(spoken, RATE_HZ) > snr_db(wave, RATE_HZ) + 10
    shifts = range(-400, 401, 4)
    likeness = [float(wave[1_000:-1_000] @ spoken[1_000 + shift : len(wave) - 1_000 + shift]) for shift in shifts]
    assert abs(shifts[int(np.argmax(likeness))]) <= 8  # a quarter of a millisecond
    assert rnnoise.separate(wave, RATE_HZ).tobytes() == spoken.tobytes()
    assert "pyrnnoise" in rnnoise.name


@pytest.mark.parametrize("samples", [1, 479, 32_001])
def test_any_length_comes_back_as_long(rnnoise: RnnoiseSeparator, samples: int) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    assert rnnoise.separate(noise, RATE_HZ).shape == noise.shape


def test_more_than_one_channel_is_refused(rnnoise: RnnoiseSeparator) -> None:
    with pytest.raises(ValueError, match="expected a mono wave"):
        rnnoise.separate(np.zeros((4, 2), np.float32), RATE_HZ)


def test_the_engine_is_found_by_its_name(rnnoise: RnnoiseSeparator) -> None:
    assert load_separator("rnnoise").name == rnnoise.name
    assert set(separator_versions("rnnoise")) == {"pyrnnoise"}


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(separator._PACKAGES, "rnnoise", "no-such-package")
    with pytest.raises(ValueError, match=r"pip install 'gsv-fleet\[separation\]'"):
        separator_versions("rnnoise")
