import json
from itertools import pairwise

import numpy as np
import pytest

from gsv_core.metrics.recognition import word_error_rate
from pipelines.engines import embedded_recogniser
from pipelines.engines.decoder import decode
from pipelines.engines.embedded_recogniser import PocketsphinxRecogniser, spoken_words
from pipelines.engines.protocols import AlignmentError
from tests.pipelines.engines.signals import tone
from tests.shared import shared_path


@pytest.fixture(scope="module")
def recogniser():
    return PocketsphinxRecogniser()


@pytest.fixture(scope="module")
def recording():
    """(wave, rate, truth) of a short recording made of clips whose places are known."""
    truth = json.loads(shared_path("recordings/truth/lj__lj_phone_note_8bit.wav.json").read_text())
    decoded = decode(shared_path("recordings/voices/lj/lj_phone_note_8bit.wav"))
    return decoded.wave[:, 0], decoded.rate_hz, truth


def test_recognises_english_and_says_where(recogniser, recording):
    wave, rate_hz, truth = recording
    heard = recogniser.transcribe(wave, rate_hz, "en")
    assert word_error_rate(" ".join(clip["text"] for clip in truth["clips"]), heard.text, "en") < 0.5
    assert [word.text for word in heard.words] == heard.text.split()
    assert 0.0 < heard.confidence <= 1.0
    edges = [edge for word in heard.words for edge in (word.start_sample, word.start_sample + word.num_samples)]
    assert edges == sorted(edges)
    assert edges[-1] <= len(wave)


def test_a_known_text_is_placed_within_an_eighth_of_a_second(recogniser, recording):
    wave, rate_hz, truth = recording
    text = " ".join(clip["text"] for clip in truth["clips"])
    words = recogniser.align(wave, rate_hz, text, "en")
    assert [word.text for word in words] == text.split()
    at = 0
    for clip in truth["clips"]:
        count = len(clip["text"].split())
        first, last = words[at], words[at + count - 1]
        assert first.start_sample / rate_hz == pytest.approx(clip["voiced_start_s"], abs=0.125)
        assert (last.start_sample + last.num_samples) / rate_hz == pytest.approx(clip["voiced_end_s"], abs=0.125)
        at += count


def test_a_whole_recording_of_53_seconds_is_aligned(recogniser):
    decoded = decode(shared_path("recordings/voices/librivox_sonnets/sonnet001.mp3"))
    text = shared_path("recordings/voices/librivox_sonnets/sonnet001.txt").read_text(encoding="utf-8")
    words = recogniser.align(decoded.wave.mean(axis=1), decoded.rate_hz, text, "en")
    assert [word.text for word in words] == text.split()
    assert all(word.num_samples > 0 for word in words)
    # A line of a sonnet takes three seconds or so: fourteen and the number, evenly spread.
    lines = np.cumsum([0] + [len(line.split()) for line in text.splitlines() if line.strip()])[:-1]
    starts = [words[index].start_sample / decoded.rate_hz for index in lines]
    assert all(1.5 < gap < 6.0 for gap in np.diff(starts))


def test_earlier_waves_and_texts_leave_no_trace(recogniser, recording):
    wave, rate_hz, truth = recording
    text = truth["clips"][0]["text"]
    span = slice(0, round(truth["clips"][0]["end_s"] * rate_hz))
    first = (recogniser.transcribe(wave[span], rate_hz, "en"), recogniser.align(wave[span], rate_hz, text, "en"))
    noise = 0.3 * np.random.default_rng(0).standard_normal(rate_hz).astype(np.float32)
    recogniser.transcribe(noise, rate_hz, "en")
    recogniser.transcribe(wave, rate_hz, "en")
    with pytest.raises(AlignmentError):
        recogniser.align(noise, rate_hz, "zyxquorb " * 9, "en")
    assert (
        recogniser.transcribe(wave[span], rate_hz, "en"),
        recogniser.align(wave[span], rate_hz, text, "en"),
    ) == first


def test_a_text_that_is_not_spoken_is_refused(recogniser, recording):
    wave, rate_hz, _ = recording
    foreign = "Making a famine where abundance lies, thy self thy foe, to thy sweet self too cruel."
    with pytest.raises(AlignmentError, match="does not fit"):
        recogniser.align(wave, rate_hz, foreign, "en")
    for text, silent in (("— …", wave), ("hello", np.zeros(rate_hz, np.float32))):
        with pytest.raises(AlignmentError):
            recogniser.align(silent, rate_hz, text, "en")
    with pytest.raises(AlignmentError, match="English"):
        recogniser.align(wave, rate_hz, "你好", "zh")


def test_a_wave_too_long_for_one_pass_is_anchored_first(recogniser, recording, monkeypatch):
    wave, rate_hz, truth = recording
    whole = recogniser.align(wave, rate_hz, truth["transcript"], "en")
    monkeypatch.setattr(embedded_recogniser, "_LONGEST_FORCED_S", 9.0)  # of 14.5
    monkeypatch.setattr(embedded_recogniser, "_APART_FRAMES", 300)
    pieces = recogniser.align(wave, rate_hz, truth["transcript"], "en")
    assert [word.text for word in pieces] == [word.text for word in whole]
    assert all(left.start_sample + left.num_samples <= right.start_sample for left, right in pairwise(pieces))
    apart_s = [abs(a.start_sample - b.start_sample) / rate_hz for a, b in zip(whole, pieces)]
    assert np.median(apart_s) <= 0.02
    assert np.quantile(apart_s, 0.8) < 0.2


def test_silence_and_other_languages(recogniser):
    assert recogniser.transcribe(np.zeros(32_000, np.float32), 32_000, "en").text == ""
    assert recogniser.transcribe(np.zeros(0, np.float32), 32_000, None).words == ()
    assert recogniser.speaks("en")
    assert not recogniser.speaks("zh")
    assert not recogniser.speaks(None)
    with pytest.raises(ValueError, match="speaks English"):
        recogniser.transcribe(tone(1.0, 16_000), 16_000, "ja")


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("Twenty-one,", ["twenty", "one"]),
        ("1665.", ["sixteen", "sixty", "five"]),
        ("don’t", ["don't"]),
        ("naïve", ["naive"]),
        ("&", ["and"]),
        ("—", []),
        ("<VOCNOISE>", []),
        ("日本", []),
    ],
)
def test_tokens_become_what_is_said(token, words):
    assert spoken_words(token) == words
