"""Recordings with and without noise: what is tried, what is kept, and what is said of it."""

from dataclasses import replace

import numpy as np
import pytest

from gsv_core.audio.levels import loudness_lufs
from pipelines.engines.choose import EngineConfig
from pipelines.rows import RATE_HZ, LevelledRecording, Recording, Treatment
from pipelines.stages.separate import SeparateModels, SeparateSpeech, SeparationConfig
from tests.pipelines.engines.signals import speech_like

TREATMENT = Treatment(
    source_rate_hz=RATE_HZ,
    source_channels=1,
    source_codec="pcm",
    channels_used="1",
    dc_offset=0.0,
    source_lufs=-16.0,
    source_peak_db=-1.0,
    shortfall_db=0.0,
)
SPEECH = 0.3 * speech_like(4.0, RATE_HZ)
NOISE = 0.05 * np.random.default_rng(0).standard_normal(len(SPEECH)).astype(np.float32)


def recording(wave: np.ndarray) -> LevelledRecording:
    about = Recording(
        recording_id="r", voice="ada", uri="a.wav", digest="d", duration_samples=len(wave), rate_hz=RATE_HZ,
        channels=1, codec="pcm",
    )  # fmt: skip
    return LevelledRecording(recording=about, wave=wave, gain_db=2.0, treatment=TREATMENT)


class Ideal:
    """Knows the noise."""

    name = "ideal"
    tried = 0

    def separate(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        self.tried += 1
        return wave - NOISE


class Muting(Ideal):
    name = "muting"

    def separate(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        return np.zeros_like(wave)


class Opinion:
    """Likes a wave the more, the less of the noise is in it."""

    name = "opinion"

    def __init__(self, worst: float, best: float) -> None:
        self._worst, self._best = worst, best

    def predict(self, wave: np.ndarray, rate_hz: int) -> float:
        share = abs(float(wave @ NOISE) / float(NOISE @ NOISE))
        return self._worst if share > 0.3 else self._best


def separated(wave: np.ndarray, models: SeparateModels, **settings: object) -> LevelledRecording:
    stage = SeparateSpeech(config=SeparationConfig(**{"mode": "auto", **settings}))  # type: ignore[arg-type]
    (row,) = stage.process(recording(wave), models)
    return row


def test_a_noisy_recording_is_freed_of_its_noise_and_levelled_again() -> None:
    row = separated(SPEECH + NOISE, SeparateModels(Ideal(), Opinion(1.5, 3.0)))
    assert row.treatment is not None
    assert row.treatment.separator == "ideal"
    assert row.treatment.snr_after_db > row.treatment.snr_before_db + 10
    assert (row.treatment.quality_before, row.treatment.quality_after) == (1.5, 3.0)
    assert row.wave.shape == SPEECH.shape
    assert abs(np.corrcoef(row.wave, SPEECH)[0, 1]) > 0.999
    loudness = loudness_lufs(row.wave, RATE_HZ)
    assert loudness is not None
    assert loudness == pytest.approx(-16.0 - row.treatment.shortfall_db, abs=0.1)
    assert row.gain_db == pytest.approx(2.0 + 20 * np.log10(row.wave @ SPEECH / (SPEECH @ SPEECH)), abs=0.1)


def test_what_does_not_gain_enough_is_left_as_it_was_and_its_numbers_are_told() -> None:
    before = SPEECH + NOISE
    row = separated(before, SeparateModels(Ideal(), Opinion(2.0, 2.1)))
    assert row.wave is before
    assert row.gain_db == 2.0
    assert row.treatment is not None
    assert row.treatment.separator is None
    assert (row.treatment.quality_before, row.treatment.quality_after) == (2.0, 2.1)


def test_a_clean_recording_is_not_even_tried_unless_all_are() -> None:
    clean = SPEECH + NOISE / 300
    ideal = Ideal()
    row = separated(clean, SeparateModels(ideal, Opinion(3.0, 3.3)))
    assert row.wave is clean
    assert ideal.tried == 0
    assert row.treatment is not None
    assert row.treatment.snr_before_db is not None
    assert row.treatment.snr_after_db is None
    separated(clean, SeparateModels(ideal, Opinion(3.0, 3.3)), mode="on")
    assert ideal.tried == 1


def test_predicted_quality_may_ask_for_it_where_the_snr_does_not() -> None:
    ideal = Ideal()
    separated(SPEECH + NOISE / 300, SeparateModels(ideal, Opinion(1.0, 1.0)))
    assert ideal.tried == 1


def test_without_a_quality_model_the_snr_decides() -> None:
    row = separated(SPEECH + NOISE, SeparateModels(Ideal(), None))
    assert row.treatment is not None
    assert row.treatment.separator == "ideal"
    assert (row.treatment.quality_before, row.treatment.quality_after) == (None, None)


def test_silence_is_no_improvement() -> None:
    before = SPEECH + NOISE
    row = separated(before, SeparateModels(Muting(), Opinion(1.5, 3.0)))
    assert row.wave is before


@pytest.mark.parametrize(("field", "value"), [("mode", "maybe"), ("engine", "magic")])
def test_what_is_not_known_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"flow.separation.{field}: expected one of"):
        SeparationConfig(**{field: value})  # type: ignore[arg-type]


def test_where_it_runs_and_how_it_is_told_apart() -> None:
    one, other = SeparateSpeech(), SeparateSpeech(config=SeparationConfig(mode="on"))
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint() == replace(one, engines=EngineConfig(recogniser_batch=8)).fingerprint()
