from dataclasses import fields, replace

import numpy as np
import pytest

from pipelines.engines.choose import EngineConfig
from pipelines.engines.flac import decode_flac, encode_flac
from pipelines.engines.quality import DnsmosQuality
from pipelines.rows import RATE_HZ, Example, Rejection, Screening
from pipelines.stages.screen import Bounds, ScreenExamples, broken_bound
from tests.pipelines.stages.conftest import Travelled

QUIET = EngineConfig(quality="none")


@pytest.fixture(scope="module")
def quality() -> DnsmosQuality:
    return DnsmosQuality()


def screened(row: Example, bounds: Bounds | None = None) -> Example | Rejection:
    (result,) = ScreenExamples(bounds=bounds or Bounds(), engines=QUIET).process(row, None)
    return result


def with_wave(row: Example, wave: np.ndarray) -> Example:
    return replace(row, flac=encode_flac(wave.astype(np.float32), RATE_HZ))


def test_a_good_example_passes_with_every_number(travelled: Travelled, quality: DnsmosQuality) -> None:
    for row in travelled.examples:
        (result,) = ScreenExamples().process(row, quality)
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
        assert (numbers.character_error_rate is not None) == row.utterance.given
        assert replace(result, screening=Screening()).utterance == row.utterance


def test_twice_the_same_numbers(travelled: Travelled, quality: DnsmosQuality) -> None:
    row = travelled.examples[0]
    (one,), (two,) = (ScreenExamples().process(row, quality) for _ in range(2))
    assert isinstance(one, Example)
    assert isinstance(two, Example)
    assert one.screening == two.screening


def test_audio_that_breaks_a_bound_is_rejected_by_the_name_of_its_number(travelled: Travelled) -> None:
    row = travelled.examples[0]
    wave, _ = decode_flac(row.flac)
    noise = np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32)
    spectrum = np.fft.rfft(wave)
    spectrum[np.fft.rfftfreq(len(wave), 1 / RATE_HZ) > 1_500] = 0
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


def test_a_text_of_something_else_is_rejected(travelled: Travelled) -> None:
    row = next(example for example in travelled.examples if example.utterance.given)
    other = replace(row, utterance=replace(row.utterance, text="zzz", recognised_text="a long walk in the hills"))
    result = screened(other)
    assert isinstance(result, Rejection)
    assert result.reason == "character_error_rate"


@pytest.mark.parametrize("repeats", [0, 40])
def test_a_rate_of_speech_that_nobody_has_is_rejected(travelled: Travelled, repeats: int) -> None:
    row = travelled.examples[0]
    hurried = replace(row, utterance=replace(row.utterance, phonemes=row.utterance.phonemes * repeats))
    result = screened(hurried)
    assert isinstance(result, Rejection)
    assert result.reason == "phonemes_per_second"


def test_every_bound_is_on_a_number_that_exists_and_none_rejects_a_missing_one() -> None:
    known = {entry.name for entry in fields(Screening)} | {"confidence", "language_probability"}
    assert {entry.name.split("_", 1)[1] for entry in fields(Bounds)} <= known
    assert broken_bound(Bounds(), Screening(), confidence=None, language_probability=None) is None


@pytest.mark.parametrize(
    ("bounds", "value", "broken"),
    [
        (Bounds(least_quality=2.0), 1.9, True),
        (Bounds(least_quality=2.0), 2.0, False),
        (Bounds(least_quality=None), 1.0, False),
    ],
)
def test_a_bound_itself_is_allowed(bounds: Bounds, value: float, broken: bool) -> None:
    result = broken_bound(bounds, Screening(quality=value), confidence=None, language_probability=None)
    assert (result is not None) == broken


def test_confidence_counts_where_a_bound_is_set() -> None:
    answer = broken_bound(Bounds(least_confidence=0.5), Screening(), confidence=0.25, language_probability=None)
    assert answer == ("confidence", "confidence is 0.25, at least 0.5 is needed")
