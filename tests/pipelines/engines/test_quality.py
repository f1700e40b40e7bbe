import numpy as np
import pytest

from pipelines.engines.decoder import decode
from pipelines.engines.quality import DnsmosQuality
from tests.pipelines.engines.signals import speech_like
from tests.shared import shared_path


@pytest.fixture(scope="module")
def dnsmos():
    return DnsmosQuality()


def test_clean_speech_is_above_noise(dnsmos):
    speech = decode(shared_path("recordings/voices/lj/clips/LJ001-0021.wav"))
    noise = decode(shared_path("recordings/bad/white_noise_10s.wav"))
    clean = dnsmos.predict(speech.wave[:, 0], speech.rate_hz)
    assert clean == pytest.approx(3.3, abs=0.3)
    assert dnsmos.predict(noise.wave[:, 0], noise.rate_hz) < 1.5
    assert dnsmos.predict(speech.wave[:, 0], speech.rate_hz) == clean


def test_equals_speechmos_own_answer(dnsmos):
    from speechmos import dnsmos as published

    wave = speech_like(10.0, 16_000)  # one window of the published script
    assert dnsmos.predict(wave[:144_160], 16_000) == pytest.approx(published.run(wave, 16_000)["ovrl_mos"], abs=1e-4)


def test_short_and_long_waves_are_heard_whole(dnsmos):
    assert [len(window) for window in dnsmos._split(np.ones(1000, np.float32))] == [144_160]
    long = np.arange(40 * 16_000, dtype=np.float32)
    first, last = dnsmos._split(long)
    assert first[0] == 0
    assert last[-1] == long[-1]
    assert len(DnsmosQuality(windows=5)._split(long)) == 5


@pytest.mark.parametrize("wave", [np.zeros(0, np.float32), np.zeros((10, 2), np.float32)])
def test_nothing_to_hear_is_refused(dnsmos, wave):
    with pytest.raises(ValueError, match="dnsmos"):
        dnsmos.predict(wave, 16_000)
