from itertools import pairwise

import numpy as np
import pytest

from pipelines.engines.decoder import decode
from pipelines.engines.voice_activity import SileroVoiceActivity, VoiceActivityConfig
from tests.shared import shared_path


@pytest.fixture(scope="module")
def silero():
    return SileroVoiceActivity()


@pytest.fixture(scope="module")
def speech():
    decoded = decode(shared_path("recordings/voices/lj/lj_day2_48k.flac"))
    return decoded.wave[:, 0], decoded.rate_hz


def test_finds_the_clips_that_were_laid_into_a_recording(silero, speech):
    import json

    wave, rate_hz = speech
    truth = json.loads(shared_path("recordings/truth/lj__lj_day2_48k.flac.json").read_text())
    spans = silero.speech(wave, rate_hz)
    found = np.zeros(len(wave), bool)
    for span in spans:
        found[span.start_sample : span.end_sample] = True
    spoken = np.zeros(len(wave), bool)
    for clip in truth["clips"]:
        spoken[round(clip["voiced_start_s"] * rate_hz) : round(clip["voiced_end_s"] * rate_hz)] = True
    assert found[spoken].mean() > 0.85  # pauses inside a clip are no speech
    assert found[~spoken].mean() < 0.15


def test_spans_are_ordered_disjoint_and_repeatable(silero, speech):
    wave, rate_hz = speech
    spans = silero.speech(wave, rate_hz)
    assert len(spans) > 5
    assert all(left.end_sample <= right.start_sample for left, right in pairwise(spans))
    assert spans[0].start_sample >= 0
    assert spans[-1].end_sample <= len(wave)
    assert silero.speech(wave, rate_hz) == spans


def test_noise_silence_and_music_are_not_speech(silero):
    for name in ("white_noise_10s.wav", "silence_20s.wav", "music_only.mp3"):
        decoded = decode(shared_path(f"recordings/bad/{name}"))
        assert silero.speech(decoded.wave[:, 0], decoded.rate_hz) == [], name
    assert silero.speech(np.zeros(0, np.float32), 16_000) == []
    assert silero.speech(np.zeros(100, np.float32), 16_000) == []


def test_probabilities_equal_faster_whisper_s_own(silero, speech):
    from faster_whisper.vad import get_vad_model

    from gsv_core.audio.resample import resample

    audio = resample(speech[0][: 20 * speech[1]], speech[1], 16_000)
    audio = audio[: len(audio) // 512 * 512]
    # faster-whisper zeroes the end of the last window, so that one differs.
    theirs = get_vad_model()(audio.copy()).reshape(-1)[:-1]
    assert np.allclose(silero.probabilities(audio, 16_000)[:-1], theirs, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"on": 0.3, "off": 0.5}, {"padding_s": -0.1}])
def test_wrong_configs_are_named(wrong):
    with pytest.raises(ValueError, match="voice activity"):
        VoiceActivityConfig(**wrong)
