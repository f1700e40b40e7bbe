import numpy as np
import pytest

from pipelines.engines.choose import EngineConfig, load_recogniser
from pipelines.engines.protocols import AlignmentError, Span
from pipelines.engines.recogniser import WhisperXRecogniser, _dealt, _groups, _Passage, _share_out, _spoken
from pipelines.rows import Word
from tests.pipelines.engines.signals import speech_like
from tests.pipelines.engines.tiny_models import write_tiny_wav2vec2, write_tiny_whisper
from tests.shared import shared_path

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("whisperx")
    return write_tiny_whisper(root / "whisper"), write_tiny_wav2vec2(root / "wav2vec2")


@pytest.fixture(scope="module")
def recogniser(folders):
    whisper, wav2vec2 = folders
    config = EngineConfig(recogniser="whisperx", recogniser_model=str(whisper), align_models={"en": str(wav2vec2)})
    return load_recogniser(config)


@pytest.fixture(scope="module")
def speech():
    from pipelines.engines.decoder import decode

    decoded = decode(shared_path("recordings/voices/lj/clips/LJ001-0022.wav"))
    return decoded.wave[:, 0], decoded.rate_hz


def test_transcribes_through_whisperx_and_repeats_itself(recogniser, speech):
    wave, rate_hz = speech
    first = recogniser.transcribe(wave, rate_hz, "en")
    assert first.language == "en"
    assert 0.0 < first.confidence < 1.0
    assert len(first.words) == len(first.text.split())
    assert all(0 <= word.start_sample <= word.start_sample + word.num_samples <= len(wave) for word in first.words)
    assert recogniser.transcribe(wave, rate_hz, "en") == first


def test_aligns_known_words_in_order(recogniser, speech):
    wave, rate_hz = speech
    text = "the invention — of 42 movable, metal-letters!"
    words = recogniser.align(wave, rate_hz, text, "en")
    assert [word.text for word in words] == text.split()
    starts = [word.start_sample for word in words]
    assert starts == sorted(starts)
    assert words[2].num_samples == 0  # the dash
    assert all(word.num_samples > 0 for index, word in enumerate(words) if index != 2)
    assert words[-1].start_sample + words[-1].num_samples <= len(wave)


def test_nltk_is_left_as_it_was(recogniser, speech):
    import nltk

    before = list(nltk.data.path)
    recogniser.align(*speech, "the invention of movable metal letters", "en")
    assert nltk.data.path == before


def test_silence_has_no_text_and_nothing_to_align(recogniser):
    silence = np.zeros(3 * RATE_HZ, np.float32)
    assert recogniser.transcribe(silence, RATE_HZ, "en").text == ""
    with pytest.raises(AlignmentError, match="nobody speaks"):
        recogniser.align(silence, RATE_HZ, "hello", "en")
    with pytest.raises(AlignmentError, match="can be spoken"):
        recogniser.align(speech_like(2.0, RATE_HZ), RATE_HZ, "— …", "en")


def test_an_english_model_speaks_english_only(recogniser):
    assert recogniser.speaks("en")
    assert recogniser.speaks(None)
    assert not recogniser.speaks("zh")
    with pytest.raises(ValueError, match="does not speak 'zh'"):
        recogniser.transcribe(speech_like(1.0, RATE_HZ), RATE_HZ, "zh")


def test_missing_models_are_named_in_one_line(folders, tmp_path):
    with pytest.raises(ValueError, match=r"model\.bin") as caught:
        WhisperXRecogniser(str(tmp_path / "absent"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"alignment model for en.*preprocessor_config"):
        WhisperXRecogniser(str(folders[0]), align_models={"en": str(tmp_path)})


def test_a_long_text_is_shared_out_by_what_was_heard():
    heard = [
        _Passage(tokens=("from", "forest", "creatures"), start_s=1.0, end_s=9.0),
        _Passage(tokens=("we", "desire", "in", "crease"), start_s=12.0, end_s=20.0),
    ]
    passages = _share_out(["From", "fairest", "creatures,", "we", "desire", "increase,"], heard, "en")
    assert [passage.tokens for passage in passages] == [
        ("From", "fairest", "creatures,"),
        ("we", "desire", "increase,"),
    ]
    assert [(passage.start_s, passage.end_s) for passage in passages] == [(1.0, 9.0), (12.0, 20.0)]
    with pytest.raises(AlignmentError, match="does not fit"):
        _share_out(["xylophone", "quiz", "jukebox"], heard, "en")


@pytest.mark.parametrize(
    ("token", "spoken"), [("don’t,", "don't"), ("—", ""), ("metal-letters!", "metal-letters"), ("你好。", "你好")]
)
def test_tokens_lose_their_punctuation(token, spoken):
    assert _spoken(token) == spoken


def spans(*seconds):
    return [Span(start_sample=start * RATE_HZ, num_samples=(end - start) * RATE_HZ) for start, end in seconds]


def test_neighbouring_clips_share_windows_of_thirty_seconds_at_most():
    assert _groups(spans((0, 9), (10, 19), (20, 30), (30, 38))) == [[0, 1, 2], [3]]
    assert _groups(spans((0, 5), (9, 12), (13, 15))) == [[0], [1, 2]]  # a long gap invites invented text
    assert _groups([]) == []


def test_words_of_a_window_are_dealt_out_by_their_times_and_in_order():
    words = [
        Word(text=text, start_sample=round(start * RATE_HZ), num_samples=round(length * RATE_HZ))
        for text, start, length in [("a", 0.5, 1), ("b", 4.8, 1), ("?", 5.8, 0), ("c", 7, 1)]
    ]
    assert [[word.text for word in mine] for mine in _dealt(words, spans((0, 5), (5, 9)))] == [["a"], ["b", "?", "c"]]


def test_clips_are_heard_together_and_only_with_their_own_recording(recogniser, speech):
    wave, rate_hz = speech
    middle = len(wave) // 2
    clips = [Span(start_sample=0, num_samples=middle), Span(start_sample=middle, num_samples=len(wave) - middle)]
    heard = recogniser.transcribe_clips(wave, rate_hz, clips, "en")
    assert len(heard) == 2
    assert recogniser.transcribe_clips(wave, rate_hz, clips, "en") == heard
    for one in heard:
        assert 0.0 < one.confidence < 1.0
        assert 0.0 <= one.no_speech_probability <= 1.0
        assert one.text == " ".join(word.text for word in one.words)
    assert recogniser.transcribe_clips(wave, rate_hz, [], "en") == []
