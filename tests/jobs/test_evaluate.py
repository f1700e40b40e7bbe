"""Scores of real runs by the real engines, and the choice that is made by them."""

import json
import re
import shutil
import wave
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cluster import Cluster
from jobs.config import EvaluationConfig
from jobs.evaluate import (
    Models,
    PairResult,
    PairTask,
    Sentence,
    evaluate_runs,
    fixed_sentences,
    is_evaluated,
    measure,
    pair_score,
    pair_tasks_of,
    sentences_of,
    write_scores,
)
from jobs.progress import Silent
from jobs.run_folder import RunFolder
from jobs.train import VoiceTask
from pipelines.engines.choose import EngineConfig, load_recogniser, load_speaker_verifier
from tests.jobs.conftest import CONFIG, MadeCorpus, ScoredCorpus
from tests.jobs.run_fixture import RATE_HZ, tone


def test_every_pair_is_scored_beside_the_base_and_the_recordings(scored: ScoredCorpus) -> None:
    for task in scored.tasks.values():
        folder = Path(task.run_dir)
        scores = json.loads((folder / "scores.json").read_text())
        pairs = [(pair["semantic"], pair["wave"]) for pair in scores["pairs"]]
        assert pairs == [("semantic-s000006", "wave-s000006"), ("semantic-s000012", "wave-s000006")]
        assert scores["independent"] is False
        assert "not" in scores["speech"]
        engines = {part: re.split(r"\W", name)[0] for part, name in scores["engines"].items()}
        assert engines == {"recogniser": "pocketsphinx", "speaker_verifier": "resemblyzer", "quality": "dnsmos"}
        assert RunFolder.read(folder).summary()["ceiling/likeness"] == scores["ceiling"]["likeness"]
        # The recordings themselves are understood, are the voice, and sound better than what a toy says.
        ceiling, base = scores["ceiling"], scores["base"]
        assert (base["semantic"], ceiling["semantic"]) == (None, None)
        assert ceiling["character_error_rate"] < 0.6 < base["character_error_rate"]
        assert ceiling["likeness"] > 0.7
        assert ceiling["mel_cepstral_distance"] is None
        for entry in (*scores["pairs"], base):
            assert entry["likeness"] < ceiling["likeness"]
            assert entry["score"] < ceiling["score"]
            assert entry["mel_cepstral_distance"] > 0
            assert entry["real_time_factor"] > 0
            for utterance in entry["utterances"]:
                with wave.open(str(folder / utterance["audio"])) as file:
                    assert file.getnframes() / file.getframerate() == pytest.approx(utterance["seconds"], abs=1e-3)
        best = max(pair["score"] for pair in scores["pairs"])
        assert next(pair for pair in scores["pairs"] if pair["semantic"] == scores["best"]["semantic"])["score"] == best
        assert json.loads((folder / "cost.json").read_text())["evaluate_seconds"] > 0


def test_scored_once_is_enough_until_something_that_decides_changes(scored: ScoredCorpus, tmp_path: Path) -> None:
    task = scored.tasks["ada"]
    assert is_evaluated(task, CONFIG)
    unused = Cluster(CONFIG.cluster, tmp_path)
    assert evaluate_runs([task], CONFIG, unused, Silent()) == {}
    assert not unused.started
    others = (
        replace(CONFIG, evaluation=EvaluationConfig(utterances=2)),
        replace(CONFIG, evaluation=replace(CONFIG.evaluation, seed=1)),
        replace(CONFIG, flow=replace(CONFIG.flow, engines=EngineConfig(quality="none"))),
    )
    for other in others:
        assert not is_evaluated(task, other)
    assert is_evaluated(task, replace(CONFIG, cluster=replace(CONFIG.cluster, cpus=1)))
    assert not is_evaluated(replace(task, run_id="another"), CONFIG)


def test_a_voice_with_held_out_clips_says_their_texts(made: MadeCorpus) -> None:
    task = made.tasks["ada"]
    held_out = {row.clip_id for row in task.rows if row.keep and row.split == "held_out"}
    sentences = sentences_of(task, replace(CONFIG, evaluation=EvaluationConfig(utterances=50)))
    assert {sentence.name for sentence in sentences} == held_out
    for sentence in sentences:
        assert sentence.row is not None
        assert sentence.row.clip_id == sentence.name
        assert sentence.language == "en"
        assert sentence.text
    assert len(sentences_of(task, CONFIG)) == 1


def test_a_voice_without_says_the_fixed_sentences_and_has_no_ceiling(trained: dict[str, VoiceTask]) -> None:
    task = trained["ada"]
    none = replace(task, rows=tuple(row for row in task.rows if row.split != "held_out"))
    config = replace(CONFIG, evaluation=EvaluationConfig(utterances=2))
    sentences = sentences_of(none, config)
    assert [sentence.text for sentence in sentences] == fixed_sentences("en")
    assert [sentence.name for sentence in sentences] == ["en-1", "en-2"]
    assert all(sentence.row is None for sentence in sentences)
    assert [pair.kind for pair in pair_tasks_of(none, config)] == ["pair", "pair", "base"]
    assert [pair.kind for pair in pair_tasks_of(task, config)] == ["pair", "pair", "base", "ceiling"]


def test_a_language_without_sentences_is_named() -> None:
    with pytest.raises(ValueError, match=r"'tlh'.*en"):
        fixed_sentences("tlh")


def test_no_number_where_no_engine_can_judge() -> None:
    """Pocketsphinx hears English alone; without a recording there is nothing to be near to."""
    engines = EngineConfig(quality="none")
    verifier = load_speaker_verifier(engines)
    models = Models(recogniser=load_recogniser(engines), verifier=verifier, quality=None, base=None)
    wave_32k = tone(2.0)
    centroid = tuple(float(value) for value in verifier.embed(wave_32k, RATE_HZ))
    sentence = Sentence(name="zh-1", text="今天下午我们坐船去对岸。", language="zh")
    task = PairTask(voice="li", run_dir="", corpus="", kind="pair", sentences=(sentence,), centroid=centroid, seed=0)
    numbers = measure(wave_32k, RATE_HZ, sentence, task, models, None)
    nulls = {name for name, value in numbers.items() if value is None}
    assert nulls == {
        "recognised",
        "character_error_rate",
        "word_error_rate",
        "quality",
        "mel_cepstral_distance",
        "duration_ratio",
    }
    assert numbers["likeness"] == pytest.approx(1, abs=1e-3)
    assert numbers["seconds"] == 2.0
    english = measure(wave_32k, RATE_HZ, replace(sentence, language="en", text="Good morning."), task, models, None)
    assert english["character_error_rate"] is not None


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


def test_the_best_pair_is_the_highest_and_the_earlier_of_equals(trained: dict[str, VoiceTask], tmp_path: Path) -> None:
    shutil.copytree(trained["ada"].run_dir, tmp_path / "run")
    task = replace(trained["ada"], run_dir=str(tmp_path / "run"))

    def result(semantic: str, likeness: float) -> PairResult:
        pair = PairTask(
            voice="ada",
            run_dir=task.run_dir,
            corpus="",
            kind="pair",
            sentences=(),
            centroid=(),
            seed=0,
            semantic=semantic,
            wave="wave-s000006",
        )
        numbers = dict.fromkeys(
            ("character_error_rate", "word_error_rate", "mel_cepstral_distance", "duration_ratio", "real_time_factor")
        )
        utterances = tuple(
            {**numbers, "clip_id": str(value), "likeness": value, "quality": None}
            for value in (likeness - 0.1, likeness + 0.1)
        )
        return PairResult(task=pair, utterances=utterances, seconds=1.0)

    results = [result("semantic-s000018", 0.6), result("semantic-s000012", 0.6), result("semantic-s000006", 0.5)]
    write_scores(task, results, {}, CONFIG)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert [pair["likeness"] for pair in scores["pairs"]] == pytest.approx([0.5, 0.6, 0.6])
    assert scores["best"]["semantic"] == "semantic-s000012"
    assert scores["ceiling"] is None
    assert is_evaluated(task, CONFIG)


def test_likeness_is_measured_by_the_engine_that_made_the_stored_vectors(trained: dict[str, VoiceTask]) -> None:
    flow = replace(CONFIG.flow, engines=replace(CONFIG.flow.engines, speaker_verifier="ecapa"))
    with pytest.raises(ValueError, match="compared by resemblyzer, likeness would be by ecapa"):
        pair_tasks_of(trained["ada"], replace(CONFIG, flow=flow))
