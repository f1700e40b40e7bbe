"""Scores of real runs by the real engines, and the choice that is made by them."""

import json
import re
import shutil
import wave
from dataclasses import replace
from pathlib import Path

import pytest

from gsv_core.checkpoints.base import load_base
from gsv_core.synthesis.synthesiser import Prompt
from jobs.cluster import Cluster
from jobs.config import EvaluationConfig, JobConfig
from jobs.evaluate import (
    PairResult,
    PairTask,
    VoicePlan,
    best_result,
    evaluate_runs,
    is_evaluated,
    pair_tasks_of,
    plan_voice,
    recall,
    write_scores,
)
from jobs.progress import Silent
from jobs.run_folder import RunFolder
from jobs.scoring import NUMBERS, Models, fixed_sentences
from jobs.train import VoiceTask
from pipelines.engines.choose import EngineConfig, engine_versions
from tests.jobs.conftest import CONFIG, MadeCorpus, ScoredCorpus
from tests.jobs.fake_engines import Verifier


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
                assert set(utterance["numbers"]) == set(NUMBERS)
                if utterance["held_out"]:
                    assert utterance["numbers"]["voicing_error"] is not None
        chosen = {half: scores["best"][half] for half in ("semantic", "wave")}
        assert chosen in [{half: entry[half] for half in chosen} for entry in scores["pairs"]]
        # What versions are compared on is said by the chosen pair alone, and counts in no mean.
        assert [record["name"] for record in scores["common"]] == ["en-2"]
        assert (folder / scores["common"][0]["audio"]).is_file()
        assert scores["common"][0]["numbers"]["likeness"] is not None
        assert all("en-2" not in str(pair["utterances"]) for pair in scores["pairs"])
        prompts = json.loads((folder / "prompts.json").read_text())
        assert scores["prompt"] == prompts["default"] == json.loads((folder / "prompt.json").read_text())["clip_id"]
        train = {row.clip_id for row in task.rows if row.split == "train"}
        assert {entry["clip_id"] for entry in prompts["candidates"]} <= train
        assert sum(entry["spoken"] is not None for entry in prompts["candidates"]) >= 2
        for style in prompts["styles"]:
            assert Prompt.load(folder / "prompts" / style).clip_id == prompts["styles"][style]
        assert "audio controls" in (folder / "evaluation.html").read_text(encoding="utf-8")
        assert json.loads((folder / "cost.json").read_text())["evaluate_seconds"] > 0


def test_base_and_recordings_are_taken_from_an_earlier_run(
    scored: ScoredCorpus,
) -> None:
    """Another run of the same voice, in the same folder of runs: nothing but its pairs is spoken."""
    task = scored.tasks["ada"]
    other = Path(task.run_dir).with_name("other")
    shutil.copytree(task.run_dir, other)
    shutil.rmtree(other / "audio")
    again = replace(task, run_dir=str(other))
    plan = planned(task)
    known = engine_versions(CONFIG.flow.engines)
    before = json.loads((Path(task.run_dir) / "scores.json").read_text())
    for entry in pair_tasks_of(replace(plan, task=again), CONFIG):
        kept = recall(entry, again, CONFIG, known)
        if entry.kind == "pair":
            assert kept is None
            continue
        assert kept is not None
        assert [record["name"] for record in kept.utterances] == [
            record["name"] for record in before[entry.kind]["utterances"]
        ]
        assert all((other / record["audio"]).is_file() for record in kept.utterances)
        # Another seed, sentence or engine is another comparison.
        assert recall(entry, again, CONFIG, {"pocketsphinx": "0"}) is None
        assert recall(replace(entry, sentences=entry.sentences[:0]), again, CONFIG, known) is None
    shutil.rmtree(other)


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


def planned(task: VoiceTask, config: JobConfig = CONFIG, likeness: str = "resemblyzer") -> VoicePlan:
    models = Models(recogniser=None, verifier=Verifier(), quality=None, base=load_base("nano"))
    return plan_voice(task, config, models, likeness)


def test_a_voice_with_held_out_clips_says_their_texts_and_fixed_sentences(made: MadeCorpus) -> None:
    task = made.tasks["ada"]
    held_out = {row.clip_id for row in task.rows if row.keep and row.split == "held_out"}
    many = replace(CONFIG, evaluation=EvaluationConfig(utterances=50, sentences=3))
    *spoken, first, second, third = planned(task, many).sentences
    assert {sentence.name for sentence in spoken} == held_out
    assert [sentence.name for sentence in (first, second, third)] == ["en-1", "en-2", "en-3"]
    for sentence in spoken:
        assert sentence.row is not None
        assert sentence.row.clip_id == sentence.name
        assert sentence.language == "en"
        assert sentence.text
    assert [sentence.row is None for sentence in planned(task).sentences] == [False, True]


def test_a_voice_without_says_more_fixed_sentences_and_has_no_ceiling(trained: dict[str, VoiceTask]) -> None:
    task = trained["ada"]
    none = replace(task, rows=tuple(row for row in task.rows if row.split != "held_out"))
    config = replace(CONFIG, evaluation=EvaluationConfig(utterances=3, sentences=2))
    assert list(planned(none, config).sentences) == fixed_sentences("en")[:3]
    assert [pair.kind for pair in pair_tasks_of(planned(none, config), config)] == ["pair", "pair", "base"]
    tasks = pair_tasks_of(planned(task, config), config)
    assert [pair.kind for pair in tasks] == ["pair", "pair", "base", "ceiling"]
    assert all(sentence.row for sentence in tasks[-1].sentences)


def test_prompt_candidates_are_never_held_out(made: MadeCorpus) -> None:
    for task in made.tasks.values():
        train = {row.clip_id for row in task.rows if row.keep and row.split == "train"}
        candidates = planned(task).candidates
        assert candidates
        assert {candidate.clip_id for candidate in candidates} <= train


def test_the_centre_is_of_the_stored_vectors_unless_another_engine_measures(made: MadeCorpus) -> None:
    task = made.tasks["ada"]
    stored, own = planned(task), planned(task, likeness="ecapa")
    assert (len(stored.centroid), len(own.centroid)) == (256, 4)
    for plan in (stored, own):
        assert sum(value**2 for value in plan.centroid) == pytest.approx(1)
        assert plan.screened_by == "resemblyzer"


def pair(task: VoiceTask, semantic: str, likeness: float) -> PairResult:
    told = PairTask(
        voice=task.voice,
        run_dir=task.run_dir,
        corpus="",
        kind="pair",
        sentences=(),
        centroid=(),
        seed=0,
        semantic=semantic,
        wave="wave-s000006",
    )
    records = tuple(
        {
            **dict.fromkeys(("clip_id", "name", "text"), str(value)),
            "language": "en",
            "recognised": None,
            "held_out": False,
            "numbers": {**dict.fromkeys(NUMBERS), "likeness": value},
        }
        for value in (likeness - 0.1, likeness + 0.1)
    )
    return PairResult(task=told, utterances=records, seconds=1.0)


def test_the_best_pair_is_the_highest_and_the_earlier_of_equals(trained: dict[str, VoiceTask], tmp_path: Path) -> None:
    shutil.copytree(trained["ada"].run_dir, tmp_path / "run")
    task = replace(trained["ada"], run_dir=str(tmp_path / "run"))
    results = [
        pair(task, "semantic-s000018", 0.6),
        pair(task, "semantic-s000012", 0.6),
        pair(task, "semantic-s000006", 0.5),
    ]
    best = best_result(results)
    assert best.task.semantic == "semantic-s000012"
    plan = VoicePlan(task=task, screened_by="resemblyzer")
    write_scores(plan, results, {"quality": "q"}, CONFIG, best=best.task, seconds=4.5)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert [entry["likeness"] for entry in scores["pairs"]] == pytest.approx([0.5, 0.6, 0.6])
    assert scores["best"]["semantic"] == "semantic-s000012"
    assert (scores["ceiling"], scores["prompt"], scores["independent"]) == (None, None, False)
    assert scores["measures"]["likeness"] == {"engine": None, "independent": False}
    assert scores["measures"]["mel_cepstral_distance"] == {"engine": None, "independent": True}
    assert scores["measures"]["quality"] == {"engine": "q", "independent": True}
    assert json.loads((tmp_path / "run" / "cost.json").read_text())["evaluate_seconds"] == 4.5
    assert "GPT 12 + SoVITS 6" in (tmp_path / "run" / "evaluation.html").read_text(encoding="utf-8")
    assert is_evaluated(task, CONFIG)
    write_scores(replace(plan, screened_by="ecapa"), results, {}, CONFIG, best=best.task, seconds=4.5)
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["independent"] is True
