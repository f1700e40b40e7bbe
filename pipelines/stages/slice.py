"""Slice: cut each Recording into Clips at its pauses.

Voice activity says where somebody speaks, energy where exactly that begins and ends; a dynamic programme over the
pauses between chooses the cuts, so that clips are neither short nor long, long pauses are left out, and a delivered
subtitle is not cut in two. Speech without a pause is cut where it is quietest. Positions are integer samples at 32 kHz.
Axes: T samples, F frames of 10 ms.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipelines.engines.choose import EngineConfig, load_voice_activity
from pipelines.engines.protocols import Span, VoiceActivity
from pipelines.rows import RATE_HZ, Clip, LevelledRecording, Rejection
from pipelines.stage import Stage
from pipelines.subtitles import read_cues

_FRAME = RATE_HZ // 100
_ABOVE_FLOOR_DB = 10.0
"""What stands this far above the quietest fifth of its pause still belongs to the speech beside it."""
_REACH_FRAMES = 60
_TRIM_FRAMES = 10
_LONGEST_DIP_FRAMES = 3
_SHORTEST_PAUSE_FRAMES = 8
_SENTENCE_PAUSE_S = 0.5
_GAP_FRAMES = 10
"""Twice as long as most closures inside a word: a minimum of energy this wide is rather a gap between words."""


@dataclass(frozen=True, kw_only=True)
class SliceRecordings(Stage[LevelledRecording, LevelledRecording]):
    """One Recording in, the same with its Clips out, in time order. A Clip points into its Recording.

    Speech that stands alone may give a clip shorter than `shortest_s`; transcribe rejects it once edges are final.

    Rejects:
        no_speech: nobody speaks in it.
    """

    name = "slice"
    version = 2
    shortest_s: float = 2.0
    longest_s: float = 10.0
    wanted_s: float = 6.0
    longest_pause_s: float = 0.8
    """A pause longer than this is rather left out than kept inside a clip."""
    padding_s: float = 0.3
    engines: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if not 0 < self.shortest_s < self.wanted_s < self.longest_s:
            raise ValueError(
                f"slice: need 0 < shortest_s < wanted_s < longest_s, got {self.shortest_s}, {self.wanted_s} and "
                f"{self.longest_s}"
            )

    def load(self) -> VoiceActivity:
        return load_voice_activity(self.engines)

    def process(self, row: LevelledRecording, model: VoiceActivity) -> Iterator[LevelledRecording | Rejection]:
        recording = row.recording
        levels = frame_levels_db(row.wave)
        speech = self._splittable(row.wave, settled(levels, model.speech(row.wave, RATE_HZ), len(row.wave)))
        if not speech:
            yield Rejection(
                row_id=recording.recording_id,
                voice=recording.voice,
                uri=recording.uri,
                stage=self.name,
                reason="no_speech",
                detail=f"{model.name} hears nobody in {len(row.wave) / RATE_HZ:.1f} s",
            )
            return
        spans = padded(
            self._grouped(speech, self._unbroken(row)),
            len(row.wave),
            round(self.padding_s * RATE_HZ),
            round(self.longest_s * RATE_HZ),
        )
        clips = [Clip.of(recording, start_sample=span.start_sample, num_samples=span.num_samples) for span in spans]
        yield replace(row, clips=tuple(clips))

    def _splittable(self, wave: np.ndarray, speech: list[Span]) -> list[Span]:
        """Speech spans, none longer than a clip may be: a longer one is cut at its quietest frames."""
        longest, roomy = (round(s * RATE_HZ) for s in (self.longest_s, self.longest_s - 2 * self.padding_s))
        return [
            piece
            for span in speech
            for piece in ([span] if span.num_samples <= longest else split_at_minima(wave, span, longest=roomy))
        ]

    def _unbroken(self, row: LevelledRecording) -> list[tuple[int, int]]:
        """Stretches that should stay in one clip: the subtitles, or a short recording whose whole text is known."""
        recording = row.recording
        if recording.transcript is None:
            return []
        if recording.transcript_format == "srt":
            return [(cue.start_sample, cue.end_sample) for cue in read_cues(recording.transcript)]
        return [(0, len(row.wave))] if len(row.wave) <= (self.longest_s + 2.0) * RATE_HZ else []

    def _grouped(self, speech: Sequence[Span], unbroken: Sequence[tuple[int, int]]) -> list[Span]:
        """Neighbouring speech spans joined into clips: the cheapest way to cut, by dynamic programming."""
        starts = [span.start_sample for span in speech]
        ends = [span.end_sample for span in speech]
        count = len(speech)
        inside = [any(start < (ends[i] + starts[i + 1]) / 2 < end for start, end in unbroken) for i in range(count - 1)]
        pauses = [(starts[i + 1] - ends[i]) / RATE_HZ for i in range(count - 1)]
        # A clip takes half of the pauses around it as its padding.
        margins = [self.padding_s, *(min(self.padding_s, pause / 2) for pause in pauses), self.padding_s]
        best = [0.0] + [float("inf")] * count
        came_from = [0] * (count + 1)
        for last in range(1, count + 1):
            pauses_cost = 0.0
            for first in range(last - 1, -1, -1):
                if first < last - 1:
                    pauses_cost += self._pause_cost(pauses[first])
                seconds = (ends[last - 1] - starts[first]) / RATE_HZ
                if seconds > self.longest_s and first < last - 1:
                    break
                padded_s = min(self.longest_s, margins[first] + seconds + margins[last])
                cut_cost = self._cut_cost(pauses[first - 1], inside[first - 1]) if first else 0.0
                cost = best[first] + self._length_cost(padded_s) + pauses_cost + cut_cost
                if cost < best[last]:
                    best[last], came_from[last] = cost, first
        spans = []
        last = count
        while last > 0:
            first = came_from[last]
            spans.append(Span(start_sample=starts[first], num_samples=ends[last - 1] - starts[first]))
            last = first
        return spans[::-1]

    def _cut_cost(self, pause_s: float, inside: bool) -> float:
        # Cutting inside a subtitle costs more than an awkward length, less than an impossible one. A sentence ends
        # with a longer pause than a phrase does.
        return (4.0 if inside else 0.0) + 1.5 * max(0.0, 1.0 - pause_s / _SENTENCE_PAUSE_S)

    def _length_cost(self, seconds: float) -> float:
        if seconds < self.shortest_s:
            return 8.0 + (self.shortest_s - seconds)
        # Each clip costs a little, so that ten seconds in one are preferred to ten in five.
        return 0.3 + ((seconds - self.wanted_s) / self.wanted_s) ** 2

    def _pause_cost(self, seconds: float) -> float:
        return 3.0 * max(0.0, seconds - self.longest_pause_s) + 0.3 * min(seconds, self.longest_pause_s)


def frame_levels_db(wave: np.ndarray) -> np.ndarray:
    """(T,) -> (F,): the power of each 10 ms with its neighbours, in dB."""
    frames = wave[: len(wave) // _FRAME * _FRAME].reshape(-1, _FRAME)
    return 10.0 * np.log10(_moving_mean(np.einsum("ft,ft->f", frames, frames, dtype=np.float64) / _FRAME, 3) + 1e-12)


def settled(levels: np.ndarray, spans: Sequence[Span], total: int) -> list[Span]:
    """Speech spans with each edge where the sound meets the quiet of its pause.

    Voice activity is late at a soft beginning and slow to end: an edge moves out while the sound stays above the
    pause's floor, at most 0.6 s and half of the pause, or in, where it was quiet already.
    """
    frames = len(levels)
    edges = [[span.start_sample // _FRAME, min(frames, -(-span.end_sample // _FRAME))] for span in spans]
    moved = [list(edge) for edge in edges]
    for index in range(len(edges) + 1):
        begin = edges[index - 1][1] if index else 0
        end = edges[index][0] if index < len(edges) else frames
        if end - begin < _SHORTEST_PAUSE_FRAMES:
            continue
        loud = np.percentile(levels[begin:end], 20) + _ABOVE_FLOOR_DB
        pause = levels[begin:end] > loud
        reach = min(_REACH_FRAMES, (end - begin) // 2)
        if index:
            first, last = edges[index - 1]
            inner = levels[max(first + 1, last - _TRIM_FRAMES) : last][::-1] > loud
            moved[index - 1][1] = last + _moved(pause[:reach], inner)
        if index < len(edges):
            first, last = edges[index]
            inner = levels[first : min(last - 1, first + _TRIM_FRAMES)] > loud
            moved[index][0] = first - _moved(pause[::-1][:reach], inner)
    result = []
    for span, before, after in zip(spans, edges, moved, strict=True):
        # An edge that stays keeps its very sample: pieces that touch go on touching.
        start = span.start_sample if before[0] == after[0] else after[0] * _FRAME
        end = span.end_sample if before[1] == after[1] else min(total, after[1] * _FRAME)
        result.append(Span(start_sample=start, num_samples=end - start))
    return result


def _moved(outside: np.ndarray, inside: np.ndarray) -> int:
    """By how many frames an edge moves out (or in, below 0), given which frames on either side are loud, outwards."""
    reached = quiet = 0
    for number, loud in enumerate(outside, start=1):
        quiet = 0 if loud else quiet + 1
        if quiet > _LONGEST_DIP_FRAMES:
            break
        reached = number if loud else reached
    if reached:
        return reached
    return -int(np.argmax(inside)) if inside.any() else 0


def split_at_minima(wave: np.ndarray, span: Span, *, longest: int) -> list[Span]:
    """`span` in pieces of at most `longest` samples, each cut in the quietest 100 ms of the admissible stretch."""
    pieces = []
    start, end = span.start_sample, span.end_sample
    while end - start > longest:
        # Not before half of what is allowed: a cut early in a sentence only makes a short clip.
        low, high = start + longest // 2, min(start + longest, end - longest // 5)
        frames = wave[low : low + (high - low) // _FRAME * _FRAME].reshape(-1, _FRAME)
        power = np.mean(np.square(frames, dtype=np.float64), axis=1)
        gap = int(np.argmin(_moving_mean(power, min(_GAP_FRAMES, len(power)))))
        first = max(0, gap - _GAP_FRAMES // 2)
        quietest = first + int(np.argmin(_moving_mean(power, 2)[first : gap + _GAP_FRAMES // 2]))
        cut = low + quietest * _FRAME
        pieces.append(Span(start_sample=start, num_samples=cut - start))
        start = cut
    pieces.append(Span(start_sample=start, num_samples=end - start))
    return pieces


def _moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """(F,) -> (F,): the mean of `width` values around each; the ends are held."""
    if len(values) < width:
        return values
    held = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    sums = np.cumsum(np.concatenate([[0.0], held]))
    return np.maximum(0.0, sums[width:] - sums[:-width]) / width


def padded(spans: Sequence[Span], total: int, padding: int, longest: int) -> list[Span]:
    """Each span with up to `padding` samples of the silence around it, half a pause at most, never over `longest`."""
    grown = []
    for index, span in enumerate(spans):
        # The silence at either end of the Recording belongs to one clip alone, a pause to two.
        before = span.start_sample if index == 0 else (span.start_sample - spans[index - 1].end_sample) // 2
        last = index + 1 == len(spans)
        after = total - span.end_sample if last else (spans[index + 1].start_sample - span.end_sample) // 2
        room = max(0, longest - span.num_samples)
        left, right = min(padding, before), min(padding, after)
        if left + right > room:
            left = room * left // (left + right)
            right = min(right, room - left)
        grown.append(Span(start_sample=span.start_sample - left, num_samples=left + span.num_samples + right))
    return grown
