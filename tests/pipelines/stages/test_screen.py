from dataclasses import fields, replace

import numpy as np
import pytest
import soundfile

from gsv_core.metrics.fingerprint import find_copies
from gsv_core.metrics.speaker import consistency, windows
from pipelines.engines.embedded_verifier import ResemblyzerVerifier
from pipelines.engines.flac import decode_flac, encode_flac
from pipelines.rows import RATE_HZ, Example, Rejection, Screening, Word
from pipelines.selection import SelectionBounds
from pipelines.stages.screen import Bounds, ScreenExamples, ScreenModels
from tests.pipelines.conftest import Travelled
from tests.shared import shared_path


@pytest.fixture(scope="module")
def models() -> ScreenModels:
    return ScreenExamples().load()


class Alike:
    """A speaker verifier without ears."""

    name, width = "alike", 2

    def embed(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        return np.array([1.0, 0.0], dtype=np.float32)


class Broken(Alike):
    """Models that answer with NaN."""

    def embed(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        return super().embed(wave, rate_hz) * np.float32(np.nan)

    def predict(self, wave: np.ndarray, rate_hz: int) -> float:
        return float("nan")


def screened(row: Example, bounds: Bounds | None = None) -> Example | Rejection:
    (result,) = ScreenExamples(bounds=bounds or Bounds()).process(row, ScreenModels(None, Alike()))
    return result


def with_wave(row: Example, wave: np.ndarray) -> Example:
    return replace(row, flac=encode_flac(wave.astype(np.float32), RATE_HZ), wave=None)


def test_a_good_example_passes_with_every_number(travelled: Travelled, models: ScreenModels) -> None:
    for row in travelled.examples:
        (result,) = ScreenExamples().process(row, models)
        assert isinstance(result, Example), result
        numbers = result.screening
        assert numbers.snr_db is not None
        assert numbers.snr_db > 15
        assert numbers.clipped_share == 0.0
        assert numbers.silence_share is not None
        assert 0 < numbers.silence_share < 0.7
        assert numbers.bandwidth_hz is not None
        assert 4_000 < numbers.bandwidth_hz <= 16_000
        assert numbers.phonemes_per_second is not None
        assert 3 < numbers.phonemes_per_second < 25
        assert numbers.quality is not None
        assert 1 <= numbers.quality <= 5
        assert numbers.level_lufs is not None
        assert -25 < numbers.level_lufs < -10
        assert numbers.speaker_consistency is not None
        assert 0.55 < numbers.speaker_consistency <= 1
        assert (numbers.character_error_rate is not None) == row.utterance.given
        assert result.not_finite == ()
        assert result.fingerprint is not None
        assert 0 < len(result.fingerprint) <= 2_000
        assert replace(result, screening=Screening()).utterance == row.utterance


def test_twice_the_same_numbers(travelled: Travelled, models: ScreenModels) -> None:
    row = travelled.examples[0]
    (one,), (two,) = (ScreenExamples().process(row, models) for _ in range(2))
    assert isinstance(one, Example)
    assert isinstance(two, Example)
    assert one.screening == two.screening
    assert one.fingerprint == two.fingerprint


def test_audio_that_breaks_a_bound_is_rejected_by_the_name_of_its_number(travelled: Travelled) -> None:
    row = travelled.examples[0]
    wave, _ = decode_flac(row.flac)
    noise = np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32)
    spectrum = np.fft.rfft(wave)
    spectrum[np.fft.rfftfreq(len(wave), 1 / RATE_HZ) > 600] = 0
    cases = {
        "snr_db": np.clip(0.1 * noise, -0.9, 0.9),
        "clipped_share": np.clip(50 * wave, -1, 1),
        "silence_share": np.concatenate([wave, np.zeros(8 * len(wave), dtype=np.float32)]),
        "bandwidth_hz": np.fft.irfft(spectrum, len(wave)),
    }
    for number, changed in cases.items():
        only = Bounds(**{f.name: getattr(Bounds(), f.name) if number in f.name else None for f in fields(Bounds)})
        result = screened(with_wave(row, changed), only)
        assert isinstance(result, Rejection), number
        assert (result.stage, result.reason) == ("screen", number)
        assert number in result.detail
        assert "is needed" in result.detail
        assert (result.start_sample, result.num_samples) == (row.utterance.start_sample, row.utterance.num_samples)


@pytest.mark.parametrize("repeats", [0, 40])
def test_a_rate_of_speech_that_nobody_has_is_rejected(travelled: Travelled, repeats: int) -> None:
    row = travelled.examples[0]
    hurried = replace(row, utterance=replace(row.utterance, phonemes=row.utterance.phonemes * repeats))
    result = screened(hurried)
    assert isinstance(result, Rejection)
    assert result.reason == "phonemes_per_second"


def test_what_a_user_may_want_to_move_rejects_nothing_here(travelled: Travelled) -> None:
    row = next(example for example in travelled.examples if example.utterance.given)
    other = replace(row, utterance=replace(row.utterance, text="zzz", recognised_text="a long walk in the hills"))
    result = screened(other)
    assert isinstance(result, Example)
    assert result.screening.character_error_rate is not None
    assert result.screening.character_error_rate > 0.85


def test_every_bound_is_on_a_number_that_exists() -> None:
    assert {entry.name.split("_", 1)[1] for entry in fields(Bounds)} <= {entry.name for entry in fields(Screening)}


def test_a_model_that_answers_with_nan_costs_the_number_and_not_the_clip(travelled: Travelled) -> None:
    row = travelled.examples[0]
    words = (Word(text="a", start_sample=0, num_samples=1, confidence=float("inf")),)
    row = replace(row, utterance=replace(row.utterance, confidence=float("nan"), words=words))
    (result,) = ScreenExamples().process(row, ScreenModels(Broken(), Broken()))
    assert isinstance(result, Example)
    assert (result.screening.quality, result.screening.speaker_consistency) == (None, None)
    assert result.utterance.confidence is None
    assert result.utterance.words[0].confidence is None
    assert result.not_finite == ("quality", "speaker_consistency", "confidence")


def test_a_fingerprint_knows_the_clip_again_after_levelling(travelled: Travelled) -> None:
    first, second = travelled.examples[:2]
    wave, _ = decode_flac(first.flac)
    codes = []
    for row in (first, with_wave(first, 0.3 * wave[5_000:]), second):
        result = screened(row)
        assert isinstance(result, Example)
        assert result.fingerprint is not None
        codes.append(np.frombuffer(result.fingerprint, dtype="<u4"))
    assert {place: copy.of for place, copy in find_copies(codes, [0, 1, 2]).items()} == {1: 0}


@pytest.mark.parametrize(
    ("span_s", "both"), [((1.0, 9.4), False), ((10.3, 17.9), False), ((5.0, 14.0), True), ((14.5, 22.5), True)]
)
def test_two_speakers_in_one_clip_show(span_s: tuple[float, float], both: bool) -> None:
    """A woman until 9.4 s and from 19.0 s, a man between."""
    session, rate_hz = soundfile.read(shared_path("recordings/bad/two_speakers.wav"), dtype="float32")
    wave = session[round(span_s[0] * rate_hz) : round(span_s[1] * rate_hz)]
    verifier = ResemblyzerVerifier()
    likeness = consistency([verifier.embed(part, rate_hz) for part in windows(wave, rate_hz)])
    least = SelectionBounds().least_speaker_consistency
    assert likeness is not None
    assert least is not None
    assert (likeness < least) == both
