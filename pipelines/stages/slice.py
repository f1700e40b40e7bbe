"""Slice: cut each Recording into Clips at its pauses.

Voice activity says where somebody speaks; a dynamic programme over the pauses between chooses the cuts, so that clips
are neither short nor long, long pauses are left out, and a delivered subtitle is not cut in two. Speech without a
pause is cut where it is quietest. Positions are integer samples at 32 kHz.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipelines.engines.choose import EngineConfig, load_voice_activity
from pipelines.engines.protocols import Span, VoiceActivity
from pipelines.rows import RATE_HZ, Clip, LevelledRecording, Rejection
from pipelines.stage import Stage
from pipelines.subtitles import read_cues

_FRAME = RATE_HZ // 50


@dataclass(frozen=True, kw_only=True)
class SliceRecordings(Stage[LevelledRecording, LevelledRecording]):
    """One Recording in, the same with its Clips out, in time order. A Clip points into its Recording.

    Speech that stands alone may give a clip shorter than `shortest_s`; transcribe rejects it once edges are final.

    Rejects:
        no_speech: nobody speaks in it.
    """

    name = "slice"
    shortest_s: float = 2.0
    longest_s: float = 10.0
    wanted_s: float = 5.0
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
        speech = self._splittable(row.wave, model.speech(row.wave, RATE_HZ))
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
        groups = self._grouped(speech, self._unbroken(row))
        spans = padded(groups, len(row.wave), round(self.padding_s * RATE_HZ), round(self.longest_s * RATE_HZ))
        clips = [Clip.of(recording, start_sample=span.start_sample, num_samples=span.num_samples) for span in spans]
        yield replace(row, clips=tuple(clips))

    def _splittable(self, wave: np.ndarray, speech: list[Span]) -> list[Span]:
        """Speech spans, none longer than a clip may be: a longer one is cut at its quietest frames."""
        pieces = []
        for span in speech:
            pieces += split_at_minima(wave, span, longest=round((self.longest_s - 2 * self.padding_s) * RATE_HZ))
        return pieces

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
        best = [0.0] + [float("inf")] * count
        came_from = [0] * (count + 1)
        for last in range(1, count + 1):
            pauses_cost = 0.0
            for first in range(last - 1, -1, -1):
                if first < last - 1:
                    pauses_cost += self._pause_cost((starts[first + 1] - ends[first]) / RATE_HZ)
                seconds = (ends[last - 1] - starts[first]) / RATE_HZ
                if seconds > self.longest_s - 0.1 and first < last - 1:
                    break
                # Cutting inside a subtitle costs more than an awkward length, less than an impossible one.
                cut_cost = 4.0 if first > 0 and inside[first - 1] else 0.0
                cost = best[first] + self._length_cost(seconds) + pauses_cost + cut_cost
                if cost < best[last]:
                    best[last], came_from[last] = cost, first
        spans = []
        last = count
        while last > 0:
            first = came_from[last]
            spans.append(Span(start_sample=starts[first], num_samples=ends[last - 1] - starts[first]))
            last = first
        return spans[::-1]

    def _length_cost(self, seconds: float) -> float:
        if seconds < self.shortest_s:
            return 8.0 + (self.shortest_s - seconds)
        # Each clip costs a little, so that ten seconds in one are preferred to ten in five.
        return 0.3 + ((seconds - self.wanted_s) / self.wanted_s) ** 2

    def _pause_cost(self, seconds: float) -> float:
        return 3.0 * max(0.0, seconds - self.longest_pause_s) + 0.3 * min(seconds, self.longest_pause_s)


def split_at_minima(wave: np.ndarray, span: Span, *, longest: int) -> list[Span]:
    """`span` in pieces of at most `longest` samples, cut at the quietest 20 ms of the admissible stretch."""
    pieces = []
    start, end = span.start_sample, span.end_sample
    while end - start > longest:
        # Not before half of what is allowed: a cut early in a sentence only makes a short clip.
        low, high = start + longest // 2, min(start + longest, end - longest // 5)
        frames = wave[low : low + (high - low) // _FRAME * _FRAME].reshape(-1, _FRAME)
        energy = np.mean(np.square(frames, dtype=np.float64), axis=1)
        cut = low + int(np.argmin(energy)) * _FRAME + _FRAME // 2
        pieces.append(Span(start_sample=start, num_samples=cut - start))
        start = cut
    pieces.append(Span(start_sample=start, num_samples=end - start))
    return pieces


def padded(spans: Sequence[Span], total: int, padding: int, longest: int) -> list[Span]:
    """Each span with up to `padding` samples of the silence around it, half a pause at most, never over `longest`."""
    grown = []
    for index, span in enumerate(spans):
        # The silence at either end of the Recording belongs to one clip alone, a pause to two.
        before = span.start_sample if index == 0 else (span.start_sample - spans[index - 1].end_sample) // 2
        last = index + 1 == len(spans)
        after = total - span.end_sample if last else (spans[index + 1].start_sample - span.end_sample) // 2
        room = max(0, longest - span.num_samples) // 2
        left, right = min(padding, room, before), min(padding, room, after)
        grown.append(Span(start_sample=span.start_sample - left, num_samples=left + span.num_samples + right))
    return grown
