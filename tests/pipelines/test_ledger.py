import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ledger import Ledger
from pipelines.rows import Example, Recording, Rejection, SpokenClip, Utterance

RECORDING = Recording(
    recording_id="r", voice="v", uri="a.wav", digest="d", duration_samples=1000, rate_hz=1, channels=1, codec="x"
)


def clip(start: int, length: int) -> SpokenClip:
    utterance = Utterance(
        clip_id=f"c{start}",
        recording_id="r",
        voice="v",
        start_sample=start,
        num_samples=length,
        text="t",
        language="en",
        confidence=None,
    )
    return SpokenClip(utterance=utterance, flac=b"", uri="a.wav", gain_db=0)


def example(spoken: SpokenClip) -> Example:
    nothing = np.zeros(1, dtype=np.float32)
    return Example(
        utterance=spoken.utterance, flac=b"", uri="a.wav", gain_db=0, content=nothing, tokens=nothing, speaker=nothing
    )


def rejection(spoken: SpokenClip) -> Rejection:
    place = spoken.utterance
    return Rejection(
        row_id=place.clip_id,
        voice="v",
        uri="a.wav",
        stage="screen",
        reason="x",
        start_sample=place.start_sample,
        num_samples=place.num_samples,
    )


@given(st.lists(st.integers(1, 60), max_size=16), st.lists(st.booleans(), min_size=16, max_size=16))
def test_every_sample_is_kept_rejected_or_silence(gaps: list[int], keeps: list[bool]) -> None:
    clips, position = [], 0
    for gap in gaps:
        if position + gap + 10 > 1000:
            break
        clips.append(clip(position + gap, 10))
        position += gap + 10
    ledger = Ledger()
    ledger.open(RECORDING)
    ledger.note_silence(clips, [])
    kept = [example(spoken) for spoken, keep in zip(clips, keeps) if keep]
    rejected = [rejection(spoken) for spoken, keep in zip(clips, keeps) if not keep]
    (account,) = ledger.settle(kept, rejected)
    assert account.kept_samples == 10 * len(kept)
    assert account.rejected_samples == 10 * len(rejected)
    assert account.non_speech_samples == 1000 - 10 * len(clips)


def test_a_lost_clip_does_not_balance() -> None:
    ledger = Ledger()
    ledger.open(RECORDING)
    ledger.note_silence([clip(0, 100), clip(200, 100)], [])
    with pytest.raises(AssertionError, match="1000 samples came in"):
        ledger.settle([example(clip(0, 100))], [])


def test_a_clip_twice_does_not_balance() -> None:
    ledger = Ledger()
    ledger.open(RECORDING)
    ledger.note_silence([clip(0, 100)], [])
    with pytest.raises(AssertionError):
        ledger.settle([example(clip(0, 100))], [rejection(clip(0, 100))])


def test_overlapping_clips_are_found() -> None:
    ledger = Ledger()
    ledger.open(RECORDING)
    with pytest.raises(AssertionError, match="two clips claim"):
        ledger.note_silence([clip(0, 100), clip(50, 100)], [])
