import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engines.protocols import Span
from pipelines.rows import RATE_HZ, LevelledRecording, Rejection
from pipelines.stages.slice import SliceRecordings, frame_levels_db, padded, settled, split_at_minima
from tests.pipelines.conftest import Travelled, levelled_of
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
        SliceRecordings(shortest_s=7.0)


TRUTH = [
    "aishell_S0150/S0150_a_quiet.wav",
    "aishell_S0150/S0150_b.opus",
    "bad/two_speakers.wav",
    "lj/lj_day1_44k_stereo.wav",
    "lj/lj_day2_48k.flac",
    "lj/lj_day3.mp3",
    "lj/lj_phone_note_8bit.wav",
    "vctk_p226/p226_session_a.m4a",
    "vctk_p226/p226_session_b_hot_24bit.wav",
    "vctk_p287_noisy/p287_noisy_16k.wav",
]
"""Every raw recording whose sentences are known, clean and noisy, quiet and hot."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One real recording as we cut it, beside where its sentences truly lie: spans in samples at 32 kHz."""

    row: LevelledRecording
    clips: list[tuple[int, int]]
    sentences: list[tuple[int, int]]
    texts: list[str]

    def inside(self) -> list[int]:
        """Our edges that fall inside a sentence short enough for one clip."""
        most = 10 * RATE_HZ
        return [
            edge for clip in self.clips for edge in clip for a, b in self.sentences if a < edge < b and b - a <= most
        ]

    def respected(self) -> list[bool]:
        """For each true boundary: it lies inside one clip of ours, or we cut in the pause it belongs to, or outside."""
        ends = [0, *(edge for sentence in self.sentences for edge in sentence), len(self.row.wave)]
        pauses = list(zip(ends[::2], ends[1::2], strict=True))
        edges = [edge for clip in self.clips for edge in clip]
        answers = []
        for number, (a, b) in enumerate(self.sentences):
            for at, (low, high) in ((a, pauses[number]), (b, pauses[number + 1])):
                whole = any(start <= low and high <= end for start, end in self.clips)
                answers.append(whole or any(low <= edge <= high and abs(edge - at) <= RATE_HZ for edge in edges))
        return answers

    def kept(self) -> tuple[int, int]:
        """Samples of true speech inside our clips, and all of them."""
        pairs = [(clip, sentence) for clip in self.clips for sentence in self.sentences]
        held = sum(max(0, min(clip[1], said[1]) - max(clip[0], said[0])) for clip, said in pairs)
        return held, sum(b - a for a, b in self.sentences)


def cut_recording(name: str, models: dict[str, Any], *, with_subtitle: bool) -> Cut:
    truth = json.loads(shared_path(f"recordings/truth/{name.replace('/', '__')}.json").read_text(encoding="utf-8"))
    path = shared_path(f"recordings/{name}" if name.startswith("bad/") else f"recordings/voices/{name}")
    said: dict[str, Any] = {}
    if with_subtitle:
        said = {"transcript": path.with_suffix(".srt").read_text(encoding="utf-8"), "transcript_format": "srt"}
    (row,) = SliceRecordings().process(levelled_of(path, **said), models["slice"])
    assert isinstance(row, LevelledRecording)
    return Cut(
        row=row,
        clips=[(clip.start_sample, clip.start_sample + clip.num_samples) for clip in row.clips],
        sentences=[
            (round(clip["voiced_start_s"] * RATE_HZ), round(clip["voiced_end_s"] * RATE_HZ)) for clip in truth["clips"]
        ],
        texts=[clip["text"] for clip in truth["clips"]],
    )


@pytest.mark.parametrize("with_subtitle", [False, True])
def test_the_true_boundaries_of_real_recordings_are_respected(with_subtitle: bool, travelled: Travelled) -> None:
    respected: list[bool] = []
    held = spoken = 0
    for name in TRUTH:
        if with_subtitle and name.startswith("bad/"):
            continue
        cut = cut_recording(name, travelled.models, with_subtitle=with_subtitle)
        mine = cut.respected()
        kept, said = cut.kept()
        figures = f"{sum(mine)} of {len(mine)} boundaries, {kept / said:.2%} of the speech, {len(cut.clips)} clips"
        print(f"{name}: {figures}")
        assert cut.inside() == [], name
        assert kept >= 0.97 * said, name
        respected += mine
        held, spoken = held + kept, spoken + said
    print(f"all: {sum(respected)} of {len(respected)} boundaries, {held / spoken:.2%} of the speech")
    assert sum(respected) >= 0.98 * len(respected)
    assert held >= 0.97 * spoken


@pytest.mark.parametrize("name", [name for name in TRUTH if name.startswith(("lj/", "vctk_p226"))])
def test_no_edge_falls_inside_a_word(name: str, travelled: Travelled) -> None:
    """The words are placed by forced alignment of the true text: another model than the one that cut."""
    cut = cut_recording(name, travelled.models, with_subtitle=False)
    slack = RATE_HZ // 25  # what an aligner's edges are worth
    words = []
    for (start, end), text in zip(cut.sentences, cut.texts, strict=True):
        begin = max(0, start - RATE_HZ // 5)
        aligned = travelled.models["transcribe"].align(cut.row.wave[begin : end + RATE_HZ // 5], RATE_HZ, text, "en")
        for word in aligned:
            first, last = begin + word.start_sample, begin + word.start_sample + word.num_samples
            # The aligner stretches the outer words into the silence it was given with the sentence.
            words.append((max(first, start) + slack, min(last, end) - slack))
    assert len(words) > 20
    edges = [edge for clip in cut.clips for edge in clip]
    assert [edge / RATE_HZ for edge in edges for start, end in words if start < edge < end] == []


def test_an_edge_moves_to_where_the_sound_meets_the_quiet() -> None:
    wave = 1e-4 * np.random.default_rng(0).standard_normal(4 * RATE_HZ).astype(np.float32)
    wave[RATE_HZ : 3 * RATE_HZ] *= 1_000
    heard = Span(start_sample=round(1.3 * RATE_HZ), num_samples=round(1.75 * RATE_HZ))  # late, and too long
    (span,) = settled(frame_levels_db(wave), [heard], len(wave))
    assert span.start_sample == pytest.approx(RATE_HZ, abs=RATE_HZ // 50)
    assert span.end_sample == pytest.approx(3 * RATE_HZ, abs=RATE_HZ // 50)


@settings(max_examples=100, deadline=None)
@given(spans=spans_within(8 * RATE_HZ), seed=st.integers(0, 9), tail=st.integers(0, 500))
def test_settled_spans_stay_apart_and_never_vanish(spans: list[Span], seed: int, tail: int) -> None:
    total = 8 * RATE_HZ + tail
    random = np.random.default_rng(seed)
    wave = random.standard_normal(total) * np.repeat(10.0 ** random.uniform(-4, 0, 200), -(-total // 200))[:total]
    moved = settled(frame_levels_db(wave.astype(np.float32)), spans, total)
    assert len(moved) == len(spans)
    assert in_order(moved, total)
