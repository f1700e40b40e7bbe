from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.engines.audio_writer import encode_audio
from pipelines.engines.decoder import DecodeLimits
from pipelines.rows import RATE_HZ, Recording, Rejection
from pipelines.stages.ingest import IngestSources
from tests.pipelines.engines.signals import tone
from tests.pipelines.stages.conftest import source_of
from tests.shared import shared_path


def only_rejection(path: Path, stage: IngestSources | None = None) -> Rejection:
    (row,) = (stage or IngestSources()).process(source_of(path), None)
    assert isinstance(row, Rejection)
    assert (row.stage, row.voice, row.uri) == ("ingest", "ada", str(path))
    assert row.detail
    return row


def test_a_good_file_becomes_a_recording_that_keeps_what_was_said_of_it(demo_voices: Path) -> None:
    source = source_of(
        demo_voices / "ada" / "day_1.wav", language="en", transcript="Hello.", licence="CC0-1.0", consent_id="c1"
    )
    (recording,) = IngestSources().process(source, None)
    assert isinstance(recording, Recording)
    assert (recording.rate_hz, recording.channels, recording.codec) == (44_100, 2, "pcm_s16le")
    assert (recording.digest, recording.language, recording.transcript) == (source.digest, "en", "Hello.")
    assert (recording.licence, recording.consent_id) == ("CC0-1.0", "c1")
    assert 5 * RATE_HZ < recording.duration_samples < 30 * RATE_HZ
    assert len(recording.recording_id) == 20


def test_the_id_follows_from_voice_and_bytes_not_from_the_name(demo_voices: Path) -> None:
    source = source_of(demo_voices / "ada" / "day_1.wav")
    elsewhere = replace(source, uri=str(demo_voices / "ada" / "day_2.flac"))
    (one,), (again,), (moved,), (other,) = (
        IngestSources().process(row, None) for row in (source, source, elsewhere, replace(source, voice="ben"))
    )
    assert one == again
    assert isinstance(one, Recording)
    assert isinstance(moved, Recording)
    assert isinstance(other, Recording)
    assert one.recording_id == moved.recording_id != other.recording_id


def test_copies_are_rejected_and_the_first_is_kept(demo_voices: Path) -> None:
    source = replace(source_of(demo_voices / "ada" / "day_1.wav"), copies=("/a/copy.wav", "/b/copy.wav"))
    *copies, kept = IngestSources().process(source, None)
    assert isinstance(kept, Recording)
    assert [(row.reason, row.uri) for row in copies if isinstance(row, Rejection)] == [
        ("duplicate", "/a/copy.wav"),
        ("duplicate", "/b/copy.wav"),
    ]


def test_an_empty_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    assert only_rejection(tmp_path / "a.wav").reason == "empty"


def test_what_is_no_audio_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(b"Dear diary, today nobody said a word.\n" * 50)
    assert only_rejection(tmp_path / "a.mp3").reason == "unreadable"


def test_a_film_without_sound_is_rejected(tmp_path: Path) -> None:
    import av

    path = tmp_path / "silent.mkv"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8), format="rgb24")))
        film.mux(stream.encode(None))
    assert only_rejection(path).reason == "no_audio"


def test_what_has_too_many_channels_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    encode_audio(path, np.repeat(tone(1.0, 16_000)[:, None], 2, axis=1), 16_000)
    assert only_rejection(path, IngestSources(limits=DecodeLimits(most_channels=1))).reason == "too_many_channels"
    (fine,) = IngestSources().process(source_of(path), None)
    assert isinstance(fine, Recording)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("empty.wav", "empty"), ("random_bytes.wav", "unreadable"), ("text_named.mp3", "unreadable"),
     ("zip_named.flac", "no_audio")],
)  # fmt: skip
def test_real_bad_files_are_named_with_their_reason(name: str, reason: str) -> None:
    assert only_rejection(shared_path(f"recordings/bad/{name}")).reason == reason
