"""The account of a unit: every sample of every Recording is kept, rejected, or not speech.

The three numbers come from three places (the Examples written, the Rejections written, and the silence between clips as
transcribe left them), so that a row lost or doubled on the way does not balance.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.rows import Account, Example, Recording, Rejection, SpokenClip


@dataclass
class Ledger:
    """The books of one unit while it is worked on."""

    _recordings: dict[str, Recording] = field(default_factory=dict)
    _non_speech: dict[str, int] = field(default_factory=dict)

    def open(self, recording: Recording) -> None:
        """A Recording whose length is known now."""
        self._recordings[recording.uri] = recording

    def note_silence(self, clips: Iterable[SpokenClip], rejections: Iterable[Rejection]) -> None:
        """Once clips are final: what no clip and no Rejection claims of a Recording is not speech."""
        claimed: dict[str, list[tuple[int, int]]] = {}
        for clip in clips:
            claimed.setdefault(clip.uri, []).append((clip.utterance.start_sample, clip.utterance.num_samples))
        for rejection in rejections:
            if rejection.start_sample is not None and rejection.num_samples is not None:
                claimed.setdefault(rejection.uri, []).append((rejection.start_sample, rejection.num_samples))
        for uri, recording in self._recordings.items():
            position = silence = 0
            for start, length in sorted(claimed.get(uri, [])):
                if start < position:
                    raise AssertionError(f"{uri}: two clips claim sample {start}")
                silence += start - position
                position = start + length
            self._non_speech[uri] = silence + recording.duration_samples - position

    def settle(self, examples: Iterable[Example], rejections: Iterable[Rejection]) -> list[Account]:
        """One Account per Recording, in order of digest.

        Raises:
            AssertionError: samples are lost or counted twice.
        """
        kept = dict.fromkeys(self._recordings, 0)
        rejected = dict.fromkeys(self._recordings, 0)
        for example in examples:
            kept[example.uri] += example.utterance.num_samples
        for rejection in rejections:
            if rejection.num_samples is not None and rejection.uri in rejected:
                rejected[rejection.uri] += rejection.num_samples
        return [
            Account(
                recording_id=recording.recording_id,
                voice=recording.voice,
                uri=uri,
                digest=recording.digest,
                duration_samples=recording.duration_samples,
                kept_samples=kept[uri],
                rejected_samples=rejected[uri],
                non_speech_samples=self._non_speech[uri],
            )
            for uri, recording in sorted(self._recordings.items(), key=lambda item: item[1].digest)
        ]
