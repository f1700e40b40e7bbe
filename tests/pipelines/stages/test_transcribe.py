from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsv_core.audio.resample import resample
from gsv_core.metrics.recognition import character_error_rate
from pipelines.engines.decoder import decode
from pipelines.engines.flac import decode_flac
from pipelines.engines.protocols import Recognition, Span, written
from pipelines.ledger import Ledger
from pipelines.rows import RATE_HZ, Clip, LevelledRecording, Rejection, SpokenClip, Word
from pipelines.stages.slice import SliceRecordings
from pipelines.stages.transcribe import (
    Guards,
    Piece,
    TranscribeClips,
    assigned,
    dominant_language,
    joined,
    longest_loop,
    recut,
)
from pipelines.stages.transcribe import pieces_of as pieces_of_words
from tests.pipelines.conftest import Travelled
from tests.pipelines.stages.test_slice import in_order, spans_within
from tests.shared import shared_path

TOTAL, LONGEST = 100_000, 30_000


def pieces_of(spans: list[Span]) -> list[Piece]:
    return [
        Piece(start_sample=span.start_sample, end_sample=span.end_sample, text=f"w{number}", passage=number)
        for number, span in enumerate(spans)
    ]


def piece(start: int, end: int, text: str = "w", passage: int = 0) -> Piece:
    return Piece(start_sample=start, end_sample=end, text=text, passage=passage)


def span(start: int, end: int) -> Span:
    return Span(start_sample=start, num_samples=end - start)


def said(row: LevelledRecording, transcript: str | None, **changes: object) -> LevelledRecording:
    return replace(row, recording=replace(row.recording, transcript=transcript, **changes))  # type: ignore[arg-type]


def run(row: LevelledRecording, travelled: Travelled, stage: TranscribeClips | None = None) -> list[object]:
    return list((stage or TranscribeClips()).process(row, travelled.models["transcribe"]))


def reasons(rows: list[object]) -> list[str]:
    assert all(isinstance(row, Rejection) for row in rows), rows
    return [row.reason for row in rows if isinstance(row, Rejection)]


@settings(max_examples=200, deadline=None)
@given(spans=spans_within(TOTAL), words=spans_within(TOTAL, most=20))
def test_recut_clips_stay_apart_and_none_outgrows_the_longest(spans: list[Span], words: list[Span]) -> None:
    clips = [Span(start_sample=s.start_sample, num_samples=min(s.num_samples, LONGEST)) for s in spans]
    again = recut(clips, pieces_of(words), LONGEST)
    assert in_order(again, TOTAL)
    assert all(s.num_samples <= LONGEST for s in again)


@settings(max_examples=200, deadline=None)
@given(spans=spans_within(TOTAL), words=spans_within(TOTAL, most=20))
def test_recut_cuts_no_piece_in_two_where_there_is_room(spans: list[Span], words: list[Span]) -> None:
    again = recut(spans, pieces_of(words), longest=10 * TOTAL)
    for word in words:
        shares = [s for s in again if s.start_sample < word.end_sample and word.start_sample < s.end_sample]
        assert len(shares) <= 1


@settings(max_examples=200, deadline=None)
@given(spans=spans_within(TOTAL), words=spans_within(TOTAL, most=20))
def test_recut_loses_no_sample_that_a_clip_had(spans: list[Span], words: list[Span]) -> None:
    covered = np.zeros(TOTAL, dtype=bool)
    for s in recut(spans, pieces_of(words), LONGEST):
        covered[s.start_sample : s.end_sample] = True
    assert all(covered[s.start_sample : s.end_sample].all() for s in spans)


def test_a_word_goes_whole_to_the_clip_that_holds_more_of_it() -> None:
    clips = [span(0, 100), span(120, 200)]
    assert recut(clips, [piece(90, 125)], 1_000) == [span(0, 125), span(125, 200)]
    assert recut(clips, [piece(95, 140)], 1_000) == [span(0, 95), span(95, 200)]


def test_a_clip_without_room_keeps_its_edges() -> None:
    assert recut([span(0, 100), span(100, 200)], [piece(60, 110)], 105) == [span(0, 100), span(100, 200)]


@settings(max_examples=200, deadline=None)
@given(spans=spans_within(TOTAL), words=spans_within(TOTAL, most=20))
def test_every_piece_that_touches_a_clip_is_assigned_once_in_order(spans: list[Span], words: list[Span]) -> None:
    pieces = pieces_of(words)
    mine = assigned(pieces[::-1], spans)
    given_out = [entry for entries in mine for entry in entries]
    touching = [p for p in pieces if any(p.overlap(s.start_sample, s.end_sample) for s in spans)]
    assert sorted(given_out, key=lambda p: p.start_sample) == touching
    assert all(one.start_sample < two.start_sample for entries in mine for one, two in pairwise(entries))


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.sampled_from(["one", "two.", "three,", "four"]), min_size=1),
    language=st.sampled_from(["en", "de", "ko"]),
)
def test_joined_words_are_all_there_with_a_mark_between_passages(texts: list[str], language: str) -> None:
    text = joined([piece(n, n + 1, word, passage=n) for n, word in enumerate(texts)], language)
    assert [part.rstrip(",.") for part in text.split()] == [word.rstrip(",.") for word in texts]
    assert all(part[-1] in ",." for part in text.split()[:-1])


def test_words_of_one_passage_get_no_mark_and_asian_text_no_blank() -> None:
    assert joined([piece(0, 1, "We"), piece(1, 2, "met")], "en") == "We met"
    assert (
        joined([piece(0, 1, "你好", 0), piece(1, 2, "世界。", 1), piece(2, 3, "再见", 2)], "zh") == "你好，世界。再见"
    )
    assert joined([piece(0, 1, "はい", 0), piece(1, 2, "そうです", 1)], "ja") == "はい、そうです"
    assert joined([], "en") == ""


def test_the_dominant_language_is_that_of_most_letters() -> None:
    assert dominant_language("We met at the station. 你好") == "en"
    assert dominant_language("今天天气非常好，我们去公园散步吧 OK") == "zh"
    assert dominant_language("") == "en"


def test_a_given_text_is_kept_in_its_order_and_checked_by_the_recogniser(travelled: Travelled) -> None:
    transcript = travelled.levelled[0].recording.transcript
    mine = [row.utterance for row in travelled.spoken if row.utterance.given]
    assert len(mine) >= 2
    assert " ".join(utterance.text for utterance in mine) == transcript
    for utterance in mine:
        assert utterance.language == "en"
        assert utterance.recognised_text
        assert character_error_rate(utterance.text, utterance.recognised_text, "en") < 0.85
        assert [word.text for word in utterance.words] == utterance.text.split()
        assert all(
            0 <= w.start_sample <= w.start_sample + w.num_samples <= utterance.num_samples for w in utterance.words
        )


def test_without_a_text_the_recognisers_words_are_taken(travelled: Travelled, demo_voices: Path) -> None:
    heard = [row.utterance for row in travelled.spoken if not row.utterance.given]
    assert heard
    assert all(utterance.text == utterance.recognised_text and utterance.words for utterance in heard)
    true_text = (demo_voices / "ada" / "day_2.txt").read_text(encoding="utf-8")
    assert character_error_rate(true_text, " ".join(utterance.text for utterance in heard), "en") < 0.85


def test_the_stored_audio_is_the_clip(travelled: Travelled) -> None:
    waves = {row.recording.uri: row.wave for row in travelled.levelled}
    for row in travelled.spoken:
        wave, rate_hz = decode_flac(row.flac)
        start = row.utterance.start_sample
        assert rate_hz == RATE_HZ
        np.testing.assert_allclose(wave, waves[row.uri][start : start + row.utterance.num_samples], atol=1 / 32_000)


def test_twice_the_same_rows(travelled: Travelled) -> None:
    again = [result for row in travelled.sliced for result in run(row, travelled)]
    assert [(row.utterance, row.flac) for row in again if isinstance(row, SpokenClip)] == [
        (row.utterance, row.flac) for row in travelled.spoken
    ]


def test_a_language_nobody_speaks_is_rejected_without_a_transcript(travelled: Travelled) -> None:
    row = said(travelled.sliced[0], None, language="ko")
    assert reasons(run(row, travelled)) == ["no_recogniser"] * len(row.clips)
    unknown = run(said(row, None, language=None), travelled)
    assert all("voice.yaml" in entry.detail for entry in unknown if isinstance(entry, Rejection))


def test_silence_has_no_words(travelled: Travelled) -> None:
    row = said(travelled.sliced[0], None)
    silent = replace(row, wave=np.zeros_like(row.wave))
    assert reasons(run(silent, travelled)) == ["no_words"] * len(row.clips)


def test_an_empty_transcript_says_nothing(travelled: Travelled) -> None:
    row = said(travelled.sliced[0], "  \n ")
    assert reasons(run(row, travelled)) == ["no_words"] * len(row.clips)


def test_a_clip_without_a_subtitle_has_no_words(travelled: Travelled) -> None:
    row = travelled.sliced[0]
    end_ms = (row.clips[0].start_sample + row.clips[0].num_samples) * 1000 // RATE_HZ - 500
    srt = f"1\n00:00:01,000 --> 00:00:0{end_ms // 1000},{end_ms % 1000:03d}\nEvery morning.\n"
    spoken, *others = run(said(row, srt, transcript_format="srt"), travelled)
    assert isinstance(spoken, SpokenClip)
    assert spoken.utterance.text == "Every morning."
    assert reasons(others) == ["no_words"] * (len(row.clips) - 1)


def test_a_text_over_several_clips_needs_an_aligner(travelled: Travelled) -> None:
    row = said(travelled.sliced[0], "안녕하세요 여러분", language="ko")
    assert reasons(run(row, travelled)) == ["no_aligner"] * len(row.clips)


def test_a_text_that_cannot_be_placed_is_unaligned(travelled: Travelled) -> None:
    row = said(travelled.sliced[0], " ".join(["extraordinarily"] * 4_000))
    assert reasons(run(row, travelled)) == ["unaligned"] * len(row.clips)


def test_a_clip_that_stays_too_short_is_rejected(travelled: Travelled) -> None:
    row = travelled.sliced[1]
    short = Clip.of(row.recording, start_sample=row.clips[0].start_sample, num_samples=RATE_HZ)
    assert reasons(run(replace(row, clips=(short,)), travelled)) == ["too_short"]
    assert reasons(run(replace(said(row, "Yes."), clips=(short,)), travelled)) == ["too_short"]


def test_a_subtitle_over_a_stray_word_and_a_sentence_claims_no_sample_twice(travelled: Travelled) -> None:
    """Was: slice rejected the short clip, then its neighbour grew over it, and the unit's books did not balance."""
    levelled, clip = travelled.levelled[1], travelled.sliced[1].clips[0]
    sentence = levelled.wave[clip.start_sample : clip.start_sample + 4 * RATE_HZ]
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(5 * RATE_HZ).astype(np.float32)
    word = sentence[RATE_HZ // 4 : RATE_HZ]
    wave = np.concatenate([quiet[:RATE_HZ], word, quiet, sentence[: 3 * RATE_HZ], quiet, sentence, quiet])
    srt = "1\n00:00:01,500 --> 00:00:09,700\nWell, every morning.\n\n2\n00:00:14,700 --> 00:00:18,800\nAnd again.\n"
    recording = replace(levelled.recording, transcript=srt, transcript_format="srt", duration_samples=len(wave))
    row = replace(levelled, wave=wave, recording=recording)
    (sliced,) = SliceRecordings().process(row, travelled.models["slice"])
    assert isinstance(sliced, LevelledRecording)
    assert sliced.clips[0].num_samples < 2 * RATE_HZ
    rows = run(sliced, travelled)
    spoken = [entry for entry in rows if isinstance(entry, SpokenClip)]
    ledger = Ledger()
    ledger.open(recording)
    ledger.note_silence(spoken, [entry for entry in rows if isinstance(entry, Rejection)])
    assert [entry.utterance.text for entry in spoken] == ["Well, every morning.", "And again."]


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shortest_s < longest_s"):
        TranscribeClips(shortest_s=11.0)


def three_clips(travelled: Travelled, srt: str) -> LevelledRecording:
    """Fifteen seconds of a language that the engine does not speak, with clips at 0 to 4, 5 to 9 and 10 to 14 s."""
    wave = np.random.default_rng(0).normal(0, 0.1, 15 * RATE_HZ).astype(np.float32)
    recording = replace(
        travelled.levelled[0].recording,
        language="zh",
        transcript=srt,
        transcript_format="srt",
        duration_samples=len(wave),
    )
    clips = tuple(Clip.of(recording, start_sample=start * RATE_HZ, num_samples=4 * RATE_HZ) for start in (0, 5, 10))
    return replace(travelled.levelled[0], recording=recording, wave=wave, clips=clips)


def test_a_subtitle_over_two_clips_joins_them_where_nothing_can_break_it_up(travelled: Travelled) -> None:
    srt = "1\n00:00:00,200 --> 00:00:08,800\n今天天气很好\n\n2\n00:00:10,200 --> 00:00:13,800\n我们出去走走\n"
    # What is left of the second clip, a fifth of a second, stands alone.
    first, rest, second = run(three_clips(travelled, srt), travelled)
    assert reasons([rest]) == ["too_short"]
    assert [spoken.utterance.text for spoken in (first, second)] == ["今天天气很好", "我们出去走走"]
    assert first.utterance.num_samples == pytest.approx(8.8 * RATE_HZ, abs=1)


def test_a_subtitle_too_long_for_a_clip_costs_only_the_clips_it_touches(travelled: Travelled) -> None:
    srt = "1\n00:00:00,000 --> 00:00:09,000\n今天天气很好\n\n2\n00:00:10,200 --> 00:00:13,800\n我们出去走走\n"
    rows = run(three_clips(travelled, srt), travelled, TranscribeClips(longest_s=8.0))
    assert [row.reason for row in rows if isinstance(row, Rejection)] == ["no_aligner", "no_aligner"]
    (kept,) = [row for row in rows if isinstance(row, SpokenClip)]
    assert kept.utterance.text == "我们出去走走"


class Dictating:
    """A recogniser that says what it was told to, a word each half second from the start of the Recording on."""

    name = "dictating"

    def __init__(self, *words: str, language: str = "en", **numbers: float) -> None:
        self.words = tuple(
            Word(text=text, start_sample=index * RATE_HZ // 2, num_samples=RATE_HZ // 2)
            for index, text in enumerate(words)
        )
        self.language, self.numbers = language, numbers
        self.asked: list[tuple[Span, ...]] = []

    def speaks(self, language: str | None) -> bool:
        return True

    def transcribe_clips(
        self, wave: np.ndarray, rate_hz: int, clips: Sequence[Span], language: str | None
    ) -> list[Recognition]:
        self.asked.append(tuple(clips))
        heard = []
        for clip in clips:
            mine = tuple(word for word in self.words if clip.start_sample <= word.start_sample < clip.end_sample)
            text = written([word.text for word in mine], self.language)
            heard.append(Recognition(text=text, language=self.language, words=mine, **self.numbers))
        return heard


def recognised(travelled: Travelled, *edges: tuple[float, float]) -> LevelledRecording:
    """A recording without a transcript, of noise, with clips at these seconds."""
    wave = np.random.default_rng(0).normal(0, 0.1, 30 * RATE_HZ).astype(np.float32)
    recording = replace(travelled.levelled[0].recording, transcript=None, language=None, duration_samples=len(wave))
    clips = tuple(
        Clip.of(recording, start_sample=round(start * RATE_HZ), num_samples=round((end - start) * RATE_HZ))
        for start, end in edges
    )
    return replace(travelled.levelled[0], recording=recording, wave=wave, clips=clips)


WORDS = (
    *("one", "two", "three", "four", "five", "six", "seven"),
    *("eight", "nine", "ten", "eleven", "twelve", "thirteen"),
)


def test_all_clips_of_a_recording_are_heard_in_one_call_and_cut_again_between_words(travelled: Travelled) -> None:
    model = Dictating(*WORDS, confidence=0.8, language_probability=0.9)
    row = recognised(travelled, (0.0, 3.1), (3.1, 6.5))  # "seven" is said from 3.0 to 3.5 s
    first, second = TranscribeClips().process(row, model)
    assert len(model.asked) == 1
    assert (first.utterance.text, second.utterance.text) == (" ".join(WORDS[:6]), " ".join(WORDS[6:]))
    assert first.utterance.num_samples == second.utterance.start_sample == 3 * RATE_HZ
    assert second.utterance.words[0] == Word(text="seven", start_sample=0, num_samples=RATE_HZ // 2)
    assert (second.utterance.language, second.utterance.language_probability) == ("en", 0.9)
    assert second.utterance.recognised_text == second.utterance.text


BABBLE = ["".join(letters) for letters in np.random.default_rng(0).choice([*"abcdefghijklmnopqrstuvwxyz"], (12, 30))]


@pytest.mark.parametrize(
    ("model", "reason", "number"),
    [
        (Dictating(*["so"] * 6, "then", "we", confidence=0.9), "repetition", "6 times"),
        (Dictating(*["Thank you for watching the video."] * 12, confidence=0.9), "repetition", "compression ratio"),
        (Dictating(*["谢谢观看"] * 12, language="zh"), "repetition", "compression ratio"),
        (Dictating("you", confidence=0.9), "speech_rate", "0.50 letters"),
        (Dictating(*BABBLE, confidence=0.9), "speech_rate", "60.00 letters per second"),
        (Dictating(*WORDS, confidence=0.2, no_speech_probability=0.9), "no_speech", "0.90"),
    ],
)
def test_what_recognisers_write_where_nobody_speaks_is_rejected(
    travelled: Travelled, model: Dictating, reason: str, number: str
) -> None:
    row = recognised(travelled, (0.0, 6.0))
    (rejection,) = TranscribeClips().process(row, model)
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.stage) == (reason, "transcribe")
    assert number in rejection.detail
    off = Guards(**dict.fromkeys(vars(Guards())))
    (spoken,) = TranscribeClips(guards=off).process(row, model)
    assert isinstance(spoken, SpokenClip)


@pytest.mark.parametrize(
    "model",
    [
        Dictating(*WORDS, confidence=0.9, no_speech_probability=0.9),  # sure of its words
        Dictating(*WORDS, confidence=0.2, no_speech_probability=0.1),
        Dictating("no,", "no,", "no,", "that", "is", "not", "what", "I", "meant"),
        Dictating(*"今天天气很好我们出去走走吧", language="zh"),
    ],
)
def test_speech_is_not_taken_for_an_invention(travelled: Travelled, model: Dictating) -> None:
    (spoken,) = TranscribeClips().process(recognised(travelled, (0.0, 6.5)), model)
    assert isinstance(spoken, SpokenClip)


def test_a_word_without_a_time_stays_with_its_neighbour() -> None:
    words = [
        Word(text=text, start_sample=start, num_samples=length)
        for text, start, length in [("—", 0, 0), ("So", 0, 5), ("42", 5, 0), ("it", 5, 5)]
    ]
    pieces = pieces_of_words(words, "en", start=100, passage=3)
    assert [(entry.text, entry.start_sample, entry.end_sample) for entry in pieces] == [
        ("— So 42", 100, 105),
        ("it", 105, 110),
    ]


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.sampled_from("abc"), max_size=40))
def test_a_loop_is_found_wherever_it_stands(words: list[str]) -> None:
    times, share = longest_loop(words)
    assert 0 <= share <= 1
    assert longest_loop([*words, *["x", "y", "z"] * 40])[0] >= 40 or len(words) > 120
    assert times == 1 or share > 0


@pytest.mark.parametrize("name", ["white_noise_10s.wav", "music_only.mp3", "silence_20s.wav"])
def test_noise_and_music_give_no_utterance_even_as_one_clip(travelled: Travelled, name: str) -> None:
    """Slice finds no speech in them; here the recogniser has to listen anyway."""
    decoded = decode(shared_path(f"recordings/bad/{name}"))
    wave = resample(decoded.wave.mean(axis=1), decoded.rate_hz, RATE_HZ)[: 10 * RATE_HZ]
    row = recognised(travelled, (0.0, len(wave) / RATE_HZ))
    row = replace(row, wave=wave, recording=replace(row.recording, language="en", duration_samples=len(wave)))
    assert [entry for entry in run(row, travelled) if isinstance(entry, SpokenClip)] == []
