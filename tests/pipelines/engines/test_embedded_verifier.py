import numpy as np
import pytest

from pipelines.engines.decoder import decode
from pipelines.engines.embedded_verifier import ResemblyzerVerifier, _window_starts
from tests.pipelines.engines.signals import speech_like
from tests.shared import shared_path


@pytest.fixture(scope="module")
def verifier():
    return ResemblyzerVerifier()


def _embed(verifier, name, first_s=0.0, last_s=8.0):
    decoded = decode(shared_path(f"recordings/voices/{name}"))
    return verifier.embed(
        decoded.wave[round(first_s * decoded.rate_hz) : round(last_s * decoded.rate_hz), 0], decoded.rate_hz
    )


def test_one_speaker_is_like_herself_and_not_like_another(verifier):
    one = _embed(verifier, "lj/clips/LJ001-0021.wav")
    same = _embed(verifier, "lj/clips/LJ001-0022.wav")
    other = _embed(verifier, "vctk_p226/p226_session_a.m4a", 1.0, 8.0)
    assert one.shape == (verifier.width,)
    assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-6)
    assert one @ same > 0.85
    assert one @ other < 0.75
    assert np.array_equal(one, _embed(verifier, "lj/clips/LJ001-0021.wav"))


def test_equals_the_package_s_own_encoder(verifier):
    resemblyzer = pytest.importorskip("resemblyzer", exc_type=ImportError)
    wave = 0.5 * speech_like(3.3, 16_000)
    package = resemblyzer.VoiceEncoder("cpu", verbose=False)
    normal = resemblyzer.audio.normalize_volume(wave.astype(np.float64), -30, increase_only=True)
    assert np.allclose(verifier.embed(wave, 16_000), package.embed_utterance(normal), atol=1e-5)


@pytest.mark.parametrize(("seconds", "windows"), [(0.5, 1), (1.6, 1), (1.9, 1), (2.0, 2), (2.4, 2), (8.0, 9)])
def test_windows_cover_a_wave(seconds, windows):
    starts = _window_starts(round(seconds * 16_000))
    assert len(starts) == windows
    assert starts == [77 * index for index in range(windows)]


def test_silence_has_no_speaker(verifier):
    with pytest.raises(ValueError, match="resemblyzer"):
        verifier.embed(np.zeros(16_000, np.float32), 16_000)
