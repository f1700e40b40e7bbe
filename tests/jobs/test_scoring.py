"""The numbers of spoken sentences, and what they come to; without a cluster."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gsv_core.checkpoints.base import load_base
from gsv_core.text.front_end import phonemise
from jobs.scoring import (
    NUMBERS,
    Sentence,
    fixed_sentences,
    likeness_engine,
    measure,
    pair_score,
    score_version,
    summarise,
)
from pipelines.engines.choose import EngineConfig
from tests.jobs.fake_engines import fake_models
from tests.jobs.run_fixture import RATE_HZ, tone, write_nano_run

GREETING = Sentence(name="en-1", text="Good morning.", language="en")
CENTRE = fake_models().verifier.embed(tone(2.0), RATE_HZ)


def spoken(seconds: float = 2.0) -> np.ndarray:
    """A tone that rises and falls: finished speech, not cut off."""
    wave = tone(seconds)
    edge = np.linspace(0, 1, RATE_HZ // 5, dtype=np.float32)
    wave[: len(edge)] *= edge**2
    wave[-len(edge) :] *= edge[::-1] ** 2
    return wave


def test_every_number_is_there_and_unknown_ones_are_null() -> None:
    record = measure(spoken(), RATE_HZ, GREETING, CENTRE, fake_models())
    assert tuple(record["numbers"]) == NUMBERS
    nulls = {name for name, value in record["numbers"].items() if value is None}
    beside_a_recording = {"mel_cepstral_distance", "pitch_error_cents", "voicing_error", "duration_ratio"}
    assert nulls == beside_a_recording | {"loop_s", "real_time_factor"}
    assert record["numbers"]["character_error_rate"] == 0.0
    assert record["numbers"]["likeness"] > 0.99
    assert (record["name"], record["text"], record["language"]) == ("en-1", "Good morning.", "en")
    assert (record["faults"], record["numbers"]["fault_share"], record["seconds"]) == ([], 0.0, 2.0)
    chinese = replace(GREETING, text="早上好。", language="zh")
    assert measure(spoken(), RATE_HZ, chinese, CENTRE, fake_models())["recognised"] is None


def test_beside_its_recording_a_wave_is_at_no_distance() -> None:
    recording = SimpleNamespace(wave=spoken(), rate_hz=RATE_HZ)
    same = measure(spoken(), RATE_HZ, GREETING, CENTRE, fake_models(), recording)["numbers"]
    assert same["mel_cepstral_distance"] == pytest.approx(0, abs=1e-4)
    assert same["pitch_error_cents"] == pytest.approx(0, abs=1e-6)
    assert (same["voicing_error"], same["duration_ratio"]) == (0.0, 1.0)
    longer = measure(spoken(3.0), RATE_HZ, GREETING, CENTRE, fake_models(), recording)["numbers"]
    assert longer["duration_ratio"] == 1.5


@pytest.mark.parametrize(
    ("wave", "heard", "tokens", "fault"),
    [
        (np.zeros(RATE_HZ, np.float32), "", (), "silent"),
        (np.zeros(0, np.float32), "", (), "silent"),
        (np.concatenate([spoken(1), np.zeros(2 * RATE_HZ, np.float32), spoken(1)]), "good morning", (), "long_pause"),
        (spoken()[:RATE_HZ], "good morning", (), "cut_end"),
        (spoken()[RATE_HZ:], "good morning", (), "cut_beginning"),
        (spoken(), "good good good morning", (), "repeated_words"),
        (spoken(), "good morning", ([*range(30), *[7, 8] * 40],), "looping_tokens"),
    ],
)
def test_each_fault_is_named(wave: np.ndarray, heard: str, tokens: tuple[list[int], ...], fault: str) -> None:
    record = measure(wave, RATE_HZ, GREETING, CENTRE, fake_models(text=heard), None, tokens)
    assert record["faults"] == [fault]
    assert record["numbers"]["fault_share"] == 1.0


def test_a_summary_has_means_and_between_what_they_lie() -> None:
    records = [measure(spoken(), RATE_HZ, GREETING, CENTRE, fake_models()) for _ in range(4)]
    for place, record in enumerate(records):
        record["numbers"] |= {"likeness": 0.2 * place, "quality": math.nan if place else 4.0}
    summary = summarise([*records[1:], {**records[0], "numbers": {**records[0]["numbers"], "likeness": None}}])
    assert summary["likeness"] == pytest.approx(0.4)
    low, high = summary["intervals"]["likeness"]
    assert 0.2 <= low < 0.4 < high <= 0.6
    assert summary["utterances"][0]["numbers"]["quality"] is None  # JSON knows no NaN
    assert summarise(records[:1])["intervals"] == {}
    assert json.loads(json.dumps(summarise(records[:1])))["mel_cepstral_distance"] is None


@pytest.mark.parametrize(
    ("error_rate", "likeness", "quality", "expected"),
    [
        (0.2, 0.7, 3.0, (0.8 + 0.7 + 0.6) / 3),
        (None, 0.7, 3.0, (0.7 + 0.6) / 2),
        (1.7, -0.2, None, 0.0),  # each part stays within 0 and 1
        (0.0, 1.0, 5.0, 1.0),
        (None, None, None, 0.0),
    ],
)
def test_the_score_is_the_mean_of_what_could_be_measured(
    error_rate: float | None, likeness: float | None, quality: float | None, expected: float
) -> None:
    numbers = {"character_error_rate": error_rate, "likeness": likeness, "quality": quality}
    assert pair_score(numbers) == pytest.approx(expected)


@pytest.mark.parametrize("language", ["en", "zh", "ja", "ko", "yue"])
def test_fixed_sentences_can_be_spoken_and_have_names_of_their_own(language: str) -> None:
    sentences = fixed_sentences(language)
    assert len(sentences) >= 8
    assert [sentence.name for sentence in sentences] == [f"{language}-{n}" for n in range(1, len(sentences) + 1)]
    assert len({sentence.text for sentence in sentences}) == len(sentences)
    if language in ("en", "zh"):  # the others load dictionaries for seconds
        assert all(phonemise(sentence.text, language).ids for sentence in sentences)


def test_a_language_without_sentences_is_named() -> None:
    with pytest.raises(ValueError, match=r"'tlh'.*en"):
        fixed_sentences("tlh")


def test_likeness_is_measured_by_an_engine_that_did_not_screen(tmp_path: Path) -> None:
    assert likeness_engine(EngineConfig(speaker_verifier="ecapa")) == "resemblyzer"
    assert likeness_engine(EngineConfig(speaker_verifier_model=str(tmp_path))) == "ecapa"
    assert likeness_engine(EngineConfig()) == "resemblyzer"  # ECAPA is not on this machine
    assert likeness_engine(EngineConfig(), "ecapa") == "ecapa"


def test_a_version_is_scored_by_its_files_alone(tmp_path: Path) -> None:
    run = write_nano_run(tmp_path / "corpus")
    base = load_base("nano")
    folder = tmp_path / "version"
    folder.mkdir()
    for half in ("semantic", "wave"):
        chosen = json.loads((run / "scores.json").read_text())["best"][half]
        shutil.copyfile(run / "weights" / f"{chosen}.safetensors", folder / f"{half}.safetensors")
    for name in ("prompt.json", "prompt.safetensors"):
        shutil.copyfile(run / name, folder / name)
    description = {"voice": "alice", "release": "nano", "base_digest": base.digest}
    (folder / "voice.json").write_text(json.dumps(description))
    kept: list[tuple[str, int]] = []

    def keep(sentence: Sentence, wave: np.ndarray, rate_hz: int) -> str:
        kept.append((sentence.name, rate_hz))
        assert len(wave) > 0
        return f"{sentence.name}.wav"

    models = fake_models(base)
    (record,) = score_version(folder, [GREETING], models, keep=keep)
    assert kept == [("en-1", 32_000)]
    assert record["audio"] == "en-1.wav"
    assert record["numbers"]["real_time_factor"] > 0
    assert record["numbers"]["loop_s"] is not None
    (again,) = score_version(folder, [GREETING], models, centre=CENTRE)
    assert again["seconds"] == record["seconds"]
    (folder / "voice.json").write_text(json.dumps(description | {"base_digest": "0" * 64}))
    with pytest.raises(ValueError, match="speaks on base nano 000000000000, but nano"):
        score_version(folder, [GREETING], models)
