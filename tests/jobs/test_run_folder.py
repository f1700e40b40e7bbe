"""What a finished run says of itself. The folder is `run_fixture`'s; a really trained one is read in test_evaluate."""

import json
from pathlib import Path

import pytest

from jobs.run_folder import RunFolder, numbers_of
from tests.jobs.run_fixture import PAIRS, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path, steps=2)


def test_a_finished_run_is_read(folder: Path) -> None:
    run = RunFolder.read(folder)
    assert (run.voice, run.run_id) == ("alice", "r" * 20)
    assert (run.best_pair["semantic"], run.best_pair["wave"]) == PAIRS[1]
    assert run.engines == {"recogniser": "pocketsphinx", "speaker_verifier": "resemblyzer"}
    assert run.note == "nano: its speech is not speech"
    with pytest.raises(ValueError, match=r"missing, but scores\.json chose it"):
        run.weights_path("semantic")
    (folder / "weights").mkdir()
    (folder / "weights" / f"{PAIRS[1][0]}.safetensors").touch()
    assert run.weights_path("semantic").name == f"{PAIRS[1][0]}.safetensors"


def test_curves_come_in_order_and_without_nulls(folder: Path) -> None:
    points = [(point.name, point.step, point.value) for point in RunFolder.read(folder).curves()]
    assert points == [
        ("semantic/cross_entropy", 1, 6.99),
        ("wave/mel", 1, 2.0),
        ("semantic/cross_entropy", 2, 6.98),
        ("wave/mel", 2, 2.0),
        ("held_out/wave/mel", 2, 1.5),
    ]


def test_numbers_leave_out_what_is_none() -> None:
    assert numbers_of({"a": 1, "b": None, "c": True, "d": "0.5", "e": 0.5}) == {"a": 1.0, "e": 0.5}


def test_the_summary_sets_the_best_beside_base_and_recordings(folder: Path) -> None:
    summary = RunFolder.read(folder).summary()
    assert summary["best/character_error_rate"] == pytest.approx(0.8)
    assert summary["ceiling/likeness"] == 0.9
    assert summary["base/character_error_rate"] == 1.0
    assert summary["cost/steps"] == 4
    assert "best/quality" not in summary


def test_the_description_says_who_measured_and_what_to_mind(folder: Path) -> None:
    text = RunFolder.read(folder).describe()
    assert "**alice** on base nano" in text
    assert "**nano: its speech is not speech.**" in text
    assert "| Character errors | 80.0 % | 100.0 % | 20.0 % |" in text
    assert "| Likeness | 0.500 | – | 0.900 |" in text
    assert "recogniser: pocketsphinx" in text
    assert "not independent" in text


@pytest.mark.parametrize("name", ["run.json", "scores.json", "cost.json", "prompt.json"])
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_file_that_is_missing_or_no_object_is_named(folder: Path, name: str, content: str | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        RunFolder.read(folder)


def test_an_unfinished_run_is_refused(folder: Path) -> None:
    (folder / "done.json").unlink()
    with pytest.raises(ValueError, match="train and evaluate the voice first"):
        RunFolder.read(folder)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="newer gsv-fleet"):
        RunFolder.read(write_run(tmp_path, schema_version=2))


def test_a_choice_that_was_not_scored_is_refused(folder: Path) -> None:
    scores = json.loads((folder / "scores.json").read_text())
    scores["best"]["wave"] = "wave-s999999"
    (folder / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(ValueError, match="not among the scored ones"):
        _ = RunFolder.read(folder).best_pair
