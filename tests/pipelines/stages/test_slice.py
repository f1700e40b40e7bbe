import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engines.protocols import Span
from pipelines.rows import RATE_HZ, LevelledRecording, Rejection
from pipelines.stages.slice import SliceRecordings, padded, split_at_minima
from tests.pipelines.stages.conftest import Travelled, levelled_of
from tests.shared import shared_path


def spans_within(total: int, most: int = 12) -> st.SearchStrategy[list[Span]]:
    """Disjoint spans in order, none empty, within `total` samples."""

    def from_edges(edges: list[int]) -> list[Span]:
        ordered = sorted(edges)
        return [Span(start_sample=a, num_samples=b - a) for a, b in zip(ordered[::2], ordered[1::2], strict=False)]

    return st.lists(st.integers(0, total), min_size=2, max_size=2 * most, unique=True).map(from_edges)


def in_order(spans: list[Span], total: int) -> bool:
    inside = all(span.start_sample >= 0 and span.num_samples > 0 and span.end_sample <= total for span in spans)
    return inside and all(one.end_sample <= two.start_sample for one, two in pairwise(spans))


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 1_000),
    length=st.integers(1, 200_000),
    longest=st.integers(9_600, 60_000),
    seed=st.integers(0, 9),
)
def test_split_pieces_tile_the_span_and_none_is_too_long(start: int, length: int, longest: int, seed: int) -> None:
    wave = np.random.default_rng(seed).standard_normal(start + length + 77).astype(np.float32)
    pieces = split_at_minima(wave, Span(start_sample=start, num_samples=length), longest=longest)
    assert pieces[0].start_sample == start
    assert pieces[-1].end_sample == start + length
    assert all(one.end_sample == two.start_sample for one, two in pairwise(pieces))
    assert all(0 < piece.num_samples <= longest for piece in pieces)


def test_a_split_falls_into_the_quietest_stretch() -> None:
    wave = np.ones(12 * RATE_HZ, dtype=np.float32)
    wave[7 * RATE_HZ : 7 * RATE_HZ + 2_000] = 0.01
    first, second = split_at_minima(wave, Span(start_sample=0, num_samples=len(wave)), longest=10 * RATE_HZ)
    assert 7 * RATE_HZ <= first.end_sample <= 7 * RATE_HZ + 2_000
    assert second.start_sample == first.end_sample


@settings(max_examples=150, deadline=None)
@given(spans=spans_within(100_000), padding=st.integers(0, 9_600), longest=st.integers(1_000, 100_000))
def test_padding_keeps_spans_apart_and_within_bounds(spans: list[Span], padding: int, longest: int) -> None:
    grown = padded(spans, 100_000, padding, longest)
    assert len(grown) == len(spans)
    assert in_order(grown, 100_000)
    for before, after in zip(spans, grown, strict=True):
        assert after.start_sample <= before.start_sample
        assert before.end_sample <= after.end_sample
        assert before.start_sample - after.start_sample <= padding
        assert after.end_sample - before.end_sample <= padding
        assert after.num_samples <= max(longest, before.num_samples)


@settings(max_examples=100, deadline=None)
@given(spans=spans_within(60 * RATE_HZ, most=20), cue_edges=spans_within(60 * RATE_HZ, most=6))
def test_groups_take_every_speech_span_once_and_whole(spans: list[Span], cue_edges: list[Span]) -> None:
    stage = SliceRecordings()
    longest = round((stage.longest_s - 2 * stage.padding_s) * RATE_HZ)
    speech = [Span(start_sample=span.start_sample, num_samples=min(span.num_samples, longest)) for span in spans]
    groups = stage._grouped(speech, [(cue.start_sample, cue.end_sample) for cue in cue_edges])
    assert in_order(groups, 60 * RATE_HZ)
    assert all(group.num_samples <= stage.longest_s * RATE_HZ for group in groups)
    for span in speech:
        holders = [g for g in groups if g.start_sample <= span.start_sample and span.end_sample <= g.end_sample]
        assert len(holders) == 1


def test_clips_lie_in_order_apart_and_within_the_lengths(travelled: Travelled) -> None:
    for row in travelled.sliced:
        spans = [Span(start_sample=clip.start_sample, num_samples=clip.num_samples) for clip in row.clips]
        assert spans
        assert in_order(spans, len(row.wave))
        assert all(2 * RATE_HZ <= span.num_samples <= 10 * RATE_HZ for span in spans)
        assert {clip.recording_id for clip in row.clips} == {row.recording.recording_id}


def test_twice_the_same_clips(travelled: Travelled) -> None:
    for before, after in zip(travelled.levelled, travelled.sliced, strict=True):
        (again,) = SliceRecordings().process(before, travelled.models["slice"])
        assert isinstance(again, LevelledRecording)
        assert again.clips == after.clips


def test_where_nobody_speaks_nothing_is_cut(travelled: Travelled) -> None:
    noise = 0.001 * np.random.default_rng(0).standard_normal(5 * RATE_HZ).astype(np.float32)
    row = replace(travelled.levelled[0], wave=noise)
    (rejection,) = SliceRecordings().process(row, travelled.models["slice"])
    assert isinstance(rejection, Rejection)
    assert (rejection.stage, rejection.reason, rejection.num_samples) == ("slice", "no_speech", None)


def test_a_subtitle_is_not_cut_at_a_pause(travelled: Travelled) -> None:
    levelled = travelled.levelled[1]
    first, second = (clip for clip in travelled.sliced[1].clips[:2])
    pause = np.zeros(RATE_HZ // 2, dtype=np.float32)
    middle = first.start_sample + first.num_samples // 2
    wave = np.concatenate([levelled.wave[:middle], pause, pause, levelled.wave[middle : second.start_sample]])
    end_s = len(wave) / RATE_HZ
    srt = f"1\n00:00:00,000 --> 00:00:{end_s:06.3f}\nOne sentence.\n".replace(".", ",", 1)
    recording = replace(levelled.recording, transcript=srt, transcript_format="srt", duration_samples=len(wave))
    (row,) = SliceRecordings().process(replace(levelled, wave=wave, recording=recording), travelled.models["slice"])
    assert isinstance(row, LevelledRecording)
    assert len(row.clips) == 1


def test_lengths_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="shortest_s < wanted_s < longest_s"):
        SliceRecordings(shortest_s=6.0)


REAL = [
    "vctk_p226/p226_session_a.m4a",
    "vctk_p226/p226_session_b_hot_24bit.wav",
    "lj/lj_day2_48k.flac",
    "aishell_S0150/S0150_b.opus",
]


def real_session(name: str, travelled: Travelled) -> tuple[LevelledRecording, list[dict[str, float]]]:
    """A real recording with its clips, and where its sentences truly lie in seconds."""
    truth = json.loads(shared_path(f"recordings/truth/{name.replace('/', '__')}.json").read_text(encoding="utf-8"))
    row = levelled_of(shared_path(f"recordings/voices/{name}"))
    (sliced,) = SliceRecordings().process(row, travelled.models["slice"])
    assert isinstance(sliced, LevelledRecording)
    return sliced, truth["clips"]


@pytest.mark.parametrize("name", REAL)
def test_real_sessions_are_cut_where_nobody_speaks(name: str, travelled: Travelled) -> None:
    row, sentences = real_session(name, travelled)
    edges = [edge for clip in row.clips for edge in (clip.start_sample, clip.start_sample + clip.num_samples)]
    speech = travelled.models["slice"].speech(row.wave, RATE_HZ)
    slack = RATE_HZ // 20

    def in_speech(sample: int) -> bool:
        # Spans come with 50 ms of padding of their own.
        return any(span.start_sample + 2 * slack < sample < span.end_sample - 2 * slack for span in speech)

    boundaries = [round(sentence[key] * RATE_HZ) for sentence in sentences for key in ("start_s", "end_s")]
    missed = [at / RATE_HZ for at in boundaries if in_speech(at) and min(abs(at - edge) for edge in edges) > slack]
    assert len(missed) <= 0.05 * len(boundaries), missed


# Aishell's sentences end in room noise that its truth counts as voiced.
@pytest.mark.parametrize("name", REAL[:-1])
def test_real_sentences_are_whole_in_the_clips(name: str, travelled: Travelled) -> None:
    row, sentences = real_session(name, travelled)
    clips = [(clip.start_sample / RATE_HZ, (clip.start_sample + clip.num_samples) / RATE_HZ) for clip in row.clips]
    ends = [
        time for sentence in sentences for time in (sentence["voiced_start_s"] + 0.05, sentence["voiced_end_s"] - 0.05)
    ]
    lost = [time for time in ends if not any(start <= time <= end for start, end in clips)]
    assert len(lost) <= 0.05 * len(ends), lost
    edges = [edge for clip in row.clips for edge in (clip.start_sample, clip.start_sample + clip.num_samples)]
    speech = np.concatenate([row.wave[clip.start_sample : clip.start_sample + clip.num_samples] for clip in row.clips])
    around = np.array([np.mean(np.square(row.wave[max(0, edge - 320) : edge + 320])) for edge in edges])
    # Whatever voice activity said: 20 ms around an edge lie 15 dB and more under the speech.
    assert (10 * np.log10(around / np.mean(np.square(speech))) < -15).all()
