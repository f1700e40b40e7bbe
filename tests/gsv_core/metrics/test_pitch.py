import numpy as np
import pytest

from gsv_core.audio.resample import resample
from gsv_core.audio.wav import read_wav
from gsv_core.metrics.pitch import PitchError, pitch_error, track_pitch
from gsv_core.metrics.signal import cepstral_warping
from tests.shared import shared_path

RATE_HZ = 16_000


def _voice(frequency, rate_hz=RATE_HZ, harmonics=12):
    """(T,) of a pulse-like tone with this frequency (T,) at every sample."""
    phase = 2 * np.pi * np.cumsum(frequency) / rate_hz
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, harmonics))).astype(np.float32)


def _cents(ours, truth):
    return 1200 * np.abs(np.log2(ours / truth))


@pytest.mark.parametrize("hz", [65.0, 110.0, 220.0, 437.0])
@pytest.mark.parametrize("rate_hz", [16_000, 32_000])
def test_a_steady_tone_is_measured_to_a_few_cents(hz, rate_hz):
    pitch = track_pitch(_voice(np.full(rate_hz, hz), rate_hz), rate_hz)
    assert len(pitch) == 1 + (RATE_HZ - 512) // 160
    inside = pitch[3:-5]  # the last windows reach past the end
    assert _cents(inside, hz).max() < 10


def test_a_gliding_tone_is_followed():
    truth = np.linspace(100, 260, 2 * RATE_HZ)
    pitch = track_pitch(_voice(truth) + 1e-3 * np.random.default_rng(0).standard_normal(len(truth)), RATE_HZ)
    centres = truth[np.arange(len(pitch)) * 160 + 256]
    assert _cents(pitch[3:-5], centres[3:-5]).max() < 30


def test_a_missing_fundamental_is_still_the_pitch():
    phase = 2 * np.pi * 150 * np.arange(RATE_HZ) / RATE_HZ
    wave = 0.1 * sum(np.sin(k * phase) for k in range(3, 9))
    assert _cents(np.median(track_pitch(wave.astype(np.float32), RATE_HZ)), 150) < 10


def test_noise_and_silence_have_no_pitch():
    noise = 0.1 * np.random.default_rng(1).standard_normal(2 * RATE_HZ).astype(np.float32)
    assert (track_pitch(noise, RATE_HZ) > 0).mean() < 0.02
    assert not track_pitch(np.zeros(RATE_HZ, np.float32), RATE_HZ).any()
    assert len(track_pitch(noise[:400], RATE_HZ)) == 0
    halves = np.concatenate([_voice(np.full(RATE_HZ, 120.0)), np.zeros(RATE_HZ, np.float32)])
    voiced = track_pitch(halves, RATE_HZ) > 0
    assert voiced[:95].mean() > 0.9
    assert not voiced[105:].any()


@pytest.mark.parametrize("cents", [-300, 0, 100, 700])
def test_a_transposed_reading_at_another_pace_differs_by_as_much(cents):
    melody = 130 + 40 * np.sin(np.linspace(0, 9, 2 * RATE_HZ))
    slower = 130 + 40 * np.sin(np.linspace(0, 9, int(2.5 * RATE_HZ)))
    first, second = (track_pitch(_voice(wave), RATE_HZ) for wave in (melody, slower * 2 ** (cents / 1200)))
    # A tone has no vowels to be aligned by, so the path is the one that is known.
    places = np.arange(len(second))
    path = np.stack([np.round(places / 1.25).astype(int), places], axis=1)
    error = pitch_error(first, second, path)
    assert error.rmse_cents == pytest.approx(abs(cents), abs=25)
    assert error.voicing_error < 0.05


def test_no_common_voice_has_no_error_in_cents():
    path = np.stack([np.arange(4)] * 2, axis=1)
    voiced, unvoiced = np.full(4, 100.0), np.zeros(4)
    assert pitch_error(voiced, unvoiced, path) == PitchError(None, 1.0)
    assert pitch_error(voiced, 2 * voiced, path) == PitchError(1200.0, 0.0)


@pytest.mark.parametrize(("recording", "low", "high"), [("lj/clips", 160, 280), ("aishell_S0150/clips", 150, 330)])
def test_real_speech_lies_where_its_speaker_does(recording, low, high):
    folder = shared_path(f"recordings/voices/{recording}")
    path = sorted(folder.glob("*.wav"))[0]
    wave, rate_hz = read_wav(path.read_bytes())
    pitch = track_pitch(wave, rate_hz)
    voiced = pitch[pitch > 0]
    assert 0.25 < len(voiced) / len(pitch) < 0.9
    assert low < np.median(voiced) < high
    # Neighbouring voiced frames are within a third of an octave: hardly any octave errors.
    neighbours = (pitch[1:] > 0) & (pitch[:-1] > 0)
    leaps = _cents(pitch[1:][neighbours], pitch[:-1][neighbours]) > 400
    assert leaps.mean() < 0.03
    # Said against itself a little slower, along the path that the cepstra give, it is the same melody.
    slower = resample(wave, rate_hz, round(1.1 * rate_hz))
    path = cepstral_warping(wave, slower, rate_hz).path
    error = pitch_error(pitch, track_pitch(slower, rate_hz), path)
    assert error.rmse_cents == pytest.approx(1200 * np.log2(1.1), abs=120)
    assert error.voicing_error < 0.2
