from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.engines.audio_writer import encode_audio
from pipelines.engines.decoder import DecodeLimits, decode
from pipelines.rows import RATE_HZ, LevelledRecording, Recording, Rejection
from pipelines.sources import gather
from pipelines.stages.ingest import IngestSources
from pipelines.stages.normalise import NormaliseRecordings
from pipelines.stages.slice import SliceRecordings
from pipelines.storage import LocalStorage
from tests.pipelines.conftest import Travelled, source_of
from tests.pipelines.engines.signals import tone
from tests.shared import shared_path


def film_with(sound: np.ndarray, path: Path, codec: str) -> Path:
    """A film, with a picture that never changes and `sound` (T,) at 48 kHz."""
    import av

    with av.open(str(path), "w") as film:
        picture = film.add_stream("mpeg4", rate=5)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        track = film.add_stream(codec, rate=48_000, layout="mono")
        for _ in range(round(5 * len(sound) / 48_000)):
            film.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8), format="rgb24")))
        film.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(format=track.codec_context.format, layout="mono", rate=48_000,
                                      frame_size=track.codec_context.frame_size)  # fmt: skip
        for piece in resampler.resample(frame):
            film.mux(track.encode(piece))
        film.mux(track.encode(None))
    return path


KINDS = {"a.wav": "pcm_s16le", "a.flac": "flac", "a.mp3": "mp3", "a.ogg": "opus", "a.opus": "opus", "a.m4a": "aac",
         "a.wma": "wmav2", "a.webm": "opus", "a.mka": "opus", "film.mp4": "aac", "film.mkv": "opus",
         "film.mov": "aac"}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_goes_from_a_folder_to_clips(
    name: str, demo_voices: Path, tmp_path: Path, travelled: Travelled
) -> None:
    decoded = decode(demo_voices / "ada" / "day_2.flac")
    assert decoded.rate_hz == 48_000
    speech, path = decoded.wave[:, 0], tmp_path / "voices" / "ada" / name
    path.parent.mkdir(parents=True)
    if name.startswith("film"):
        film_with(speech, path, {"aac": "aac", "opus": "libopus"}[KINDS[name]])
    else:
        encode_audio(path, speech, 48_000)
    (source,) = gather(tmp_path / "voices", LocalStorage(tmp_path / "corpus")).sources
    (recording,) = IngestSources().process(source, None)
    assert isinstance(recording, Recording)
    assert recording.codec == KINDS[name]
    (levelled,) = NormaliseRecordings().process(recording, None)
    assert isinstance(levelled, LevelledRecording)
    assert levelled.recording.duration_samples == pytest.approx(len(speech) / 48_000 * RATE_HZ, abs=0.1 * RATE_HZ)
    assert levelled.treatment is not None
    assert not [note for note in levelled.treatment.warnings if "LUFS" not in note]
    (sliced,) = SliceRecordings().process(levelled, travelled.models["slice"])
    assert isinstance(sliced, LevelledRecording)
    # Lossy codecs may move an edge; the clips stay the same ones.
    starts = [clip.start_sample for clip in sliced.clips]
    expected = [clip.start_sample for clip in travelled.sliced[1].clips]
    assert starts == pytest.approx(expected, abs=0.15 * RATE_HZ)


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
