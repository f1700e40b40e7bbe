import io
import os
import struct
import subprocess
import sys
import wave as wave_module
from collections.abc import Iterator

import numpy as np
import pytest

from pipelines.engines.decoder import DecodeLimits, UndecodableError, _frames, decode, probe
from pipelines.engines.flac import encode_flac
from tests.pipelines.engines.signals import tone
from tests.shared import shared_path


def _wav(samples: np.ndarray, rate_hz: int) -> bytes:
    """(T, C) int16 as a WAV file."""
    buffer = io.BytesIO()
    with wave_module.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def _float_wav(samples: np.ndarray, rate_hz: int) -> bytes:
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, rate_hz, rate_hz * 4, 4, 32)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def _sine(channels: int = 1, seconds: float = 0.5, rate_hz: int = 22_050) -> np.ndarray:
    return np.stack([np.rint(20_000 * tone(seconds, rate_hz, 300 * (index + 1))) for index in range(channels)], axis=1)


def test_a_wav_comes_back_sample_for_sample_from_path_and_file(tmp_path):
    samples = _sine(channels=2)
    path = tmp_path / "’a’ 100% $(b) 录音.WAV"
    path.write_bytes(_wav(samples, 22_050))
    decoded = decode(path)
    assert decoded.wave.dtype == np.float32
    assert np.array_equal(decoded.wave, (samples / 32_768).astype(np.float32))
    assert (decoded.rate_hz, decoded.channels, decoded.codec, decoded.warnings) == (22_050, 2, "pcm_s16le", ())
    assert np.array_equal(decode(io.BytesIO(path.read_bytes())).wave, decoded.wave)
    assert np.array_equal(decode(str(path)).wave, decoded.wave)
    assert probe(path).duration_s == pytest.approx(0.5)


def test_flac_comes_back_exactly():
    wave = tone(0.5, 32_000)
    decoded = decode(io.BytesIO(encode_flac(wave, 32_000)))
    assert decoded.codec == "flac"
    assert np.abs(decoded.wave[:, 0] - wave).max() <= 0.5 / 32_768


@pytest.mark.parametrize(
    ("codec", "container"), [("libmp3lame", "mp3"), ("aac", "ipod"), ("libopus", "ogg"), ("libopus", "matroska")]
)
def test_lossy_formats_keep_pitch_level_and_length(codec, container):
    import av

    wave, buffer = tone(2.0, 48_000, 440.0), io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        for resampled in av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=48_000,
                                           frame_size=stream.codec_context.frame_size).resample(frame):  # fmt: skip
            output.mux(stream.encode(resampled))
        output.mux(stream.encode(None))
    decoded = decode(io.BytesIO(buffer.getvalue()))
    assert decoded.warnings == ()
    assert len(decoded.wave) / decoded.rate_hz == pytest.approx(2.0, abs=0.06)
    middle = decoded.wave[24_000:72_000, 0]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_limits_stop_a_file_that_asks_for_too_much():
    data = _wav(_sine(channels=3, seconds=1.0), 22_050)
    with pytest.raises(UndecodableError) as caught:
        decode(io.BytesIO(data), limits=DecodeLimits(longest_s=0.5))
    assert caught.value.reason == "too_long"
    with pytest.raises(UndecodableError) as caught:
        decode(io.BytesIO(data), limits=DecodeLimits(most_bytes=100_000))
    assert caught.value.reason == "too_long"
    for read in (probe, decode):
        with pytest.raises(UndecodableError) as caught:
            read(io.BytesIO(data), limits=DecodeLimits(most_channels=2))
        assert caught.value.reason == "too_many_channels"
    with pytest.raises(ValueError, match="positive"):
        DecodeLimits(longest_s=0)


def test_a_rate_of_one_hertz_is_no_audio():
    with pytest.raises(UndecodableError) as caught:
        decode(io.BytesIO(_wav(_sine(), 1)))
    assert caught.value.reason == "unreadable"


def test_samples_that_are_no_numbers_become_zero_and_are_counted():
    wave = tone(0.2, 16_000)
    broken = wave.copy()
    broken[[10, 20, 30]] = np.nan, np.inf, -np.inf
    decoded = decode(io.BytesIO(_float_wav(broken, 16_000)))
    assert decoded.warnings == ("3 samples were NaN or infinite and were set to zero",)
    broken[[10, 20, 30]] = 0.0
    assert np.array_equal(decoded.wave[:, 0], broken)


def test_floats_over_full_scale_are_kept():
    wave = 25 * tone(0.2, 16_000, level=1.0)
    decoded = decode(io.BytesIO(_float_wav(wave, 16_000)))
    assert np.array_equal(decoded.wave[:, 0], wave)
    assert decoded.warnings == ("samples reach 25.00 times full scale",)


@pytest.mark.parametrize(("claimed", "word"), [(0, "no length"), (0xFFFFFFFF, "no length"), (2**31, "cut off")])
def test_a_wrong_length_in_a_header_is_said_and_the_audio_kept(claimed, word):
    samples = _sine()
    data = bytearray(_wav(samples, 22_050))
    data[40:44] = struct.pack("<I", claimed)
    decoded = decode(io.BytesIO(bytes(data)))
    assert len(decoded.wave) == len(samples)
    assert len(decoded.warnings) == 1
    assert word in decoded.warnings[0]


def test_damage_in_the_middle_of_a_flac_is_said():
    data = bytearray(encode_flac(tone(4.0, 32_000), 32_000))
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    decoded = decode(io.BytesIO(bytes(data)))
    assert len(decoded.wave) < 4 * 32_000
    assert "missing between its frames" in decoded.warnings[0]
    assert np.isfinite(decoded.wave).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"RIFF\x00\x00", "unreadable"),
        (b"some text, and a good deal of it, that is not audio at all\n" * 40, "unreadable"),
        (b"PK\x03\x04" + bytes(3000), "unreadable"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "unreadable"),
        (b"ffconcat version 1.0\nfile a.wav\n", "unreadable"),
        (_wav(np.zeros((0, 1)), 22_050), "empty"),
    ],
)
def test_what_is_no_audio_has_a_reason(data, reason):
    with pytest.raises(UndecodableError) as caught:
        decode(io.BytesIO(data))
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_folders_pipes_and_missing_files_are_unreadable(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path, tmp_path / "pipe.wav", tmp_path / "absent.wav"):
        with pytest.raises(UndecodableError) as caught:
            decode(path)
        assert caught.value.reason == "unreadable"


def test_a_playlist_on_disk_opens_no_other_file(tmp_path):
    (tmp_path / "other.wav").write_bytes(_wav(_sine(), 22_050))
    for name, text in (
        ("a.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/other.wav\n#EXT-X-ENDLIST\n"),
        ("a.ffconcat", "ffconcat version 1.0\nfile other.wav\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UndecodableError):
            decode(tmp_path / name)


def test_a_video_without_sound_has_no_audio():
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode(None))
    with pytest.raises(UndecodableError) as caught:
        decode(io.BytesIO(buffer.getvalue()))
    assert caught.value.reason == "no_audio"


REASONS = {"empty", "unreadable", "no_audio"}
EXPECTED_OF_BAD = {
    "empty.wav": "empty",
    "header_only.wav": "unreadable",
    "random_bytes.wav": "unreadable",
    "text_named.mp3": "unreadable",
    "folder_named.wav": "unreadable",
    "zip_named.flac": "no_audio",
    "truncated.wav": "cut off",
    "wrong_length_header.wav": "cut off",
    "streaming_header_zero.wav": "no length",
    "nan_inf_float32.wav": "NaN",
    "float_over_range.wav": "full scale",
}


def test_every_bad_recording_is_decoded_honestly_or_refused_with_its_reason():
    reasons = {}
    for path in sorted(shared_path("recordings/bad").iterdir()):
        expected = EXPECTED_OF_BAD.get(path.name)
        try:
            decoded = decode(path)
        except UndecodableError as error:
            reasons[path.name] = error.reason
            continue
        assert np.isfinite(decoded.wave).all(), path.name
        if expected is None:
            assert decoded.warnings == (), path.name
        else:
            assert any(expected in warning for warning in decoded.warnings), path.name
    assert reasons == {name: reason for name, reason in EXPECTED_OF_BAD.items() if reason in REASONS}


def test_libav_prints_nothing(tmp_path):
    (tmp_path / "a.mp3").write_bytes(bytes(range(256)) * 200)
    code = (
        "import sys\nfrom pipelines.engines.decoder import UndecodableError, decode\n"
        "try:\n    decode(sys.argv[1])\nexcept UndecodableError:\n    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.mp3")], capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout == b""


def test_a_stream_that_a_damaged_file_turns_up_with_late_ends_it() -> None:
    class Container:
        def demux(self, stream: object) -> Iterator[object]:
            yield from ()
            raise IndexError("list index out of range")  # as PyAV does

    assert list(_frames(Container(), None)) == [None]  # type: ignore[arg-type]
