import struct
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gsv_core.audio.levels import loudness_lufs, true_peak_db
from pipelines.engines.audio_writer import encode_audio
from pipelines.engines.decoder import DecodeLimits, decode
from pipelines.rows import RATE_HZ, LevelledRecording, Recording, Rejection
from pipelines.stages.normalise import NormaliseRecordings, to_mono
from tests.pipelines.conftest import Travelled, levelled_of, source_of
from tests.pipelines.engines.signals import speech_like, tone
from tests.shared import shared_path


def recording_at(path: Path, **changes: object) -> Recording:
    values = {"recording_id": "r", "voice": "ada", "uri": str(path), "digest": source_of(path).digest,
              "duration_samples": 0, "rate_hz": 0, "channels": 0, "codec": ""}  # fmt: skip
    return Recording(**{**values, **changes})  # type: ignore[arg-type]


def written(path: Path, samples: np.ndarray, rate_hz: int) -> LevelledRecording:
    encode_audio(path, samples, rate_hz)
    return levelled_of(path)


def write_float_wav(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, rate_hz, rate_hz * 4, 4, 32)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)


def pitch_hz(tone_32k: np.ndarray) -> float:
    """The strongest frequency."""
    spectrum = np.abs(np.fft.rfft(tone_32k * np.hanning(len(tone_32k))))
    return float(np.argmax(spectrum) * RATE_HZ / len(tone_32k))


def test_speech_arrives_at_the_target_or_at_the_ceiling(travelled: Travelled) -> None:
    for row in travelled.levelled:
        assert row.wave.dtype == np.float32
        assert row.wave.ndim == 1
        assert len(row.wave) == row.recording.duration_samples
        loudness, peak = loudness_lufs(row.wave, RATE_HZ), true_peak_db(row.wave, RATE_HZ)
        assert loudness is not None
        assert loudness <= -15.95
        assert peak <= -0.95
        assert abs(loudness + 16) < 0.05 or abs(peak + 1) < 0.05
        short = any("LUFS" in note for note in row.treatment.warnings)
        assert short == (loudness < -16.05)


def test_a_quiet_steady_tone_is_raised_to_the_target_exactly(tmp_path: Path) -> None:
    row = written(tmp_path / "a.wav", tone(3.0, 48_000, level=0.01), 48_000)
    assert loudness_lufs(row.wave, RATE_HZ) == pytest.approx(-16.0, abs=0.05)
    assert row.gain_db > 15
    assert not row.treatment.warnings


def test_a_peak_keeps_the_gain_down_and_the_shortfall_is_noted(tmp_path: Path) -> None:
    clicking = tone(3.0, 32_000, level=0.01)
    clicking[40_000] = 0.9
    row = written(tmp_path / "a.wav", clicking, 32_000)
    assert true_peak_db(row.wave, RATE_HZ) == pytest.approx(-1.0, abs=0.05)
    (note,) = row.treatment.warnings
    assert "LU below -16 LUFS" in note


def test_an_offset_is_gone_before_the_level_is_measured(tmp_path: Path) -> None:
    speech = speech_like(3.0, 44_100)
    plain = written(tmp_path / "plain.wav", speech, 44_100)
    offset = written(tmp_path / "offset.wav", speech + 0.35, 44_100)
    assert abs(float(offset.wave.mean())) < 1e-3
    assert offset.gain_db == pytest.approx(plain.gain_db, abs=0.1)


def test_a_dead_channel_costs_no_level(tmp_path: Path) -> None:
    speech = 0.2 * speech_like(3.0, 44_100)
    mono = written(tmp_path / "mono.wav", speech, 44_100)
    half = written(tmp_path / "half.wav", np.stack([speech, np.zeros_like(speech)], axis=1), 44_100)
    assert half.gain_db == pytest.approx(mono.gain_db, abs=0.05)
    assert half.treatment.warnings[0] == "used channel 1 of 2: the others are silent"


def test_to_mono_takes_the_mean_of_what_sounds() -> None:
    loud, quieter = tone(1.0, 8_000), 0.5 * tone(1.0, 8_000)
    mono = to_mono(np.stack([loud, quieter, 0.001 * loud], axis=1), 8_000)
    np.testing.assert_allclose(mono.wave, 0.75 * loud, atol=1e-6)
    assert mono.used == "1, 2"
    assert mono.notes == ["used channel 1, 2 of 3: the others are silent"]
    same = to_mono(loud[:, None], 8_000)
    np.testing.assert_array_equal(same.wave, loud)
    assert (same.used, list(same.notes)) == ("1", [])


def test_rumble_does_not_choose_the_channel() -> None:
    speech, rumble = 0.2 * speech_like(3.0, 44_100), tone(3.0, 44_100, hz=30.0, level=0.5)
    mono = to_mono(np.stack([rumble, speech], axis=1), 44_100)
    assert mono.used == "2"
    np.testing.assert_array_equal(mono.wave, speech)


def test_channels_in_opposite_phase_do_not_cancel() -> None:
    speech = speech_like(2.0, 44_100)
    mono = to_mono(np.stack([speech, -0.9 * speech], axis=1), 44_100)
    np.testing.assert_array_equal(mono.wave, speech)
    assert "opposite phase" in mono.notes[0]


def test_where_each_channel_has_its_own_speaker_the_mix_follows_them_at_their_level() -> None:
    first, second = speech_like(4.0, 16_000), speech_like(4.0, 16_000, seed=1, pitch_hz=190.0)
    hiss = 0.01 * np.random.default_rng(0).standard_normal((2, 4 * 16_000)).astype(np.float32)
    half = 2 * 16_000
    left, right = hiss[0].copy(), hiss[1].copy()
    left[:half] += first[:half]
    right[half:] += second[half:]
    mono = to_mono(np.stack([left, right], axis=1), 16_000)
    assert mono.used == "loudest"
    away = 16_000 // 2  # from where they change over
    for speaker, part in ((left, slice(away, half - away)), (right, slice(half + away, -away))):
        error = mono.wave[part] - speaker[part]
        assert 10 * np.log10(np.mean(error**2) / np.mean(speaker[part] ** 2)) < -30
    other = (left + right)[away : half - away] / 2
    assert np.std(other) < 0.6 * np.std(left[away : half - away])  # what a mean would have made of it


def test_six_channels_at_96_khz_keep_their_pitch(tmp_path: Path) -> None:
    samples = np.zeros((2 * 96_000, 6), dtype="<i2")
    samples[:, 0] = np.round(32_767 * tone(2.0, 96_000, hz=440.0, level=0.2))
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((6, 2, 96_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    row = levelled_of(tmp_path / "a.wav")
    assert len(row.wave) == 2 * RATE_HZ
    assert pitch_hz(row.wave) == pytest.approx(440.0, abs=1.0)
    assert (row.recording.rate_hz, row.recording.channels) == (96_000, 6)


def test_a_very_quiet_recording_is_levelled_too(tmp_path: Path) -> None:
    """Speech whose loudest moments lie at -66 dBFS is below BS.1770's absolute gate nearly everywhere."""
    speech = speech_like(5.0, 32_000)
    data = (speech / np.abs(speech).max() * 10 ** (-66 / 20)).astype("<f4")
    path = tmp_path / "a.wav"
    write_float_wav(path, data, 32_000)
    row = levelled_of(path)
    assert row.treatment is not None
    loudness, peak = loudness_lufs(row.wave, RATE_HZ), true_peak_db(row.wave, RATE_HZ)
    assert loudness is not None
    assert row.gain_db > 40
    assert abs(loudness + 16) < 0.1 or abs(peak + 1) < 0.05
    assert row.treatment.source_lufs is not None
    assert row.treatment.source_lufs < -70


def test_what_was_done_is_said(tmp_path: Path) -> None:
    clipped = np.clip(8 * tone(2.0, 44_100, level=0.2), -1, 1) * 0.6 + 0.4
    row = written(tmp_path / "a.flac", np.stack([clipped, np.zeros_like(clipped)], axis=1), 44_100)
    done = row.treatment
    assert done is not None
    assert (done.source_rate_hz, done.source_channels, done.source_codec, done.channels_used) == (
        44_100,
        2,
        "flac",
        "1",
    )
    assert done.dc_offset == pytest.approx(0.4, abs=0.01)
    assert done.source_lufs is not None
    assert done.shortfall_db == pytest.approx(max(0.0, -16 - done.source_lufs - row.gain_db))
    assert [note for note in done.warnings if "full scale" in note]


def test_a_silent_recording_is_rejected_with_all_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    encode_audio(path, np.zeros((RATE_HZ, 1), dtype=np.float32), RATE_HZ)
    (row,) = NormaliseRecordings().process(recording_at(path), None)
    assert isinstance(row, Rejection)
    assert (row.stage, row.reason, row.start_sample, row.num_samples) == ("normalise", "silent", 0, RATE_HZ)


@pytest.mark.parametrize(
    ("content", "limits", "reason"),
    [
        (b"", DecodeLimits(), "empty"),
        (b"not audio at all" * 100, DecodeLimits(), "unreadable"),
        (None, DecodeLimits(longest_s=0.5), "too_long"),
        (None, DecodeLimits(most_channels=1), "too_many_channels"),
    ],
)
def test_what_the_decoder_refuses_is_rejected(
    tmp_path: Path, content: bytes | None, limits: DecodeLimits, reason: str
) -> None:
    path = tmp_path / "a.wav"
    if content is None:
        encode_audio(path, np.stack([tone(1.0, 16_000)] * 2, axis=1), 16_000)
    else:
        path.write_bytes(content)
    (row,) = NormaliseRecordings(limits=limits).process(recording_at(path), None)
    assert isinstance(row, Rejection)
    assert (row.reason, row.start_sample) == (reason, None)


def test_twice_the_same_samples(travelled: Travelled, demo_voices: Path) -> None:
    first = travelled.levelled[1]
    again = levelled_of(demo_voices / "ada" / "day_2.flac", language="en")
    assert again.recording == first.recording
    assert again.gain_db == first.gain_db
    assert again.wave.tobytes() == first.wave.tobytes()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="target_lufs"):
        NormaliseRecordings(target_lufs=3.0)
    with pytest.raises(ValueError, match="ceiling_db"):
        replace(NormaliseRecordings(), ceiling_db=1.0)


REAL = ["dc_offset.wav", "dead_right_channel.wav", "float_over_range.wav", "six_channel_96k.wav", "UPPERCASE.WAV",
        "truncated.wav", "wrong_length_header.wav"]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_troubled_files_come_out_level_and_finite(name: str) -> None:
    row = levelled_of(shared_path(f"recordings/bad/{name}"))
    loudness, peak = loudness_lufs(row.wave, RATE_HZ), true_peak_db(row.wave, RATE_HZ)
    assert np.isfinite(row.wave).all()
    assert abs(float(row.wave.mean())) < 1e-3
    assert peak <= -0.95
    assert loudness is not None
    assert abs(loudness + 16) < 0.05 or abs(peak + 1) < 0.05


def test_the_real_six_channel_file_keeps_length_and_the_voice_of_its_first_channel() -> None:
    row = levelled_of(shared_path("recordings/bad/six_channel_96k.wav"))
    assert len(row.wave) == pytest.approx(2 * RATE_HZ, abs=RATE_HZ // 100)
    assert row.treatment.warnings[0] == "used channel 1 of 6: the others are silent"


def test_the_real_recording_with_a_speaker_per_channel_keeps_both_at_their_level() -> None:
    path = shared_path("recordings/bad/one_speaker_per_channel.wav")
    row = levelled_of(path)
    assert row.treatment is not None
    assert row.treatment.channels_used == "loudest"
    source = decode(path)
    gain = 10 ** (row.gain_db / 20)
    for channel, (start_s, end_s) in enumerate(((2, 24), (30, 50))):
        alone = source.wave[start_s * source.rate_hz : end_s * source.rate_hz, channel]
        ours = row.wave[start_s * RATE_HZ : end_s * RATE_HZ]
        assert np.std(ours) / gain == pytest.approx(np.std(alone), rel=0.02)
