"""A voice of the made corpus as a folder for GPT-SoVITS, and back."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from jobs.dataset import export_dataset, import_dataset
from jobs.workspace import Workspace
from pipelines.engines.decoder import decode
from pipelines.interchange import LIST, TEXTS, TOKENS, WAVES
from pipelines.rows import RATE_HZ
from pipelines.sources import gather
from pipelines.storage import LocalStorage
from tests.jobs.conftest import CONFIG, MadeCorpus


@pytest.fixture
def copied(made: MadeCorpus, tmp_path: Path) -> Workspace:
    shutil.copytree(made.workspace.root, tmp_path / "copy")
    return Workspace.open(tmp_path / "copy")


def test_what_is_kept_for_training_is_written_and_handed_in_again(copied: Workspace, tmp_path: Path) -> None:
    exported = export_dataset(copied, CONFIG, "ada", tmp_path / "out" / "ada")
    lines = (exported.folder / LIST).read_text(encoding="utf-8").splitlines()
    waves = sorted(path.name for path in (exported.folder / WAVES).iterdir())
    assert exported.clips == len(lines) == len(waves) == len((exported.folder / TEXTS).read_text().splitlines())
    assert len((exported.folder / TOKENS).read_text().splitlines()) == exported.clips + 1
    seconds = [len(decode(path).wave) / RATE_HZ for path in (exported.folder / WAVES).iterdir()]
    assert exported.seconds == pytest.approx(sum(seconds), abs=0.01)
    assert (exported.voice, exported.release) == ("ada", "nano")

    imported = import_dataset(exported.folder, copied, "Ada two")
    assert imported.recordings == exported.clips
    assert imported.languages == ("en",)
    folder = imported.folder / imported.voice
    assert yaml.safe_load((folder / "voice.yaml").read_text()) == {"language": "en"}
    handed_in = gather(imported.folder, LocalStorage(tmp_path / "corpus"))
    assert {source.voice for source in handed_in.sources} == {imported.voice}
    said = {line.split("|")[0].rpartition("/")[2]: line.rpartition("|")[2] for line in lines}
    assert {Path(source.uri).name: (source.transcript or "").strip() for source in handed_in.sources} == said


def test_all_of_a_voice_is_more_than_what_trains(copied: Workspace, tmp_path: Path) -> None:
    clips = {
        split: export_dataset(copied, CONFIG, "ada", tmp_path / split, split=split).clips
        for split in ("all", "train", "held_out")
    }
    assert clips["all"] == clips["train"] + clips["held_out"]
    assert clips["held_out"] > 0


def test_what_cannot_be_done_is_one_line_and_leaves_nothing(copied: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="--voice eve: not in the corpus; there are ada, grace, linus"):
        export_dataset(copied, CONFIG, "eve", out)
    with pytest.raises(ValueError, match="--split is 'most', expected one of"):
        export_dataset(copied, CONFIG, "ada", out, split="most")
    with pytest.raises(ValueError):  # nothing of it is kept
        export_dataset(copied, CONFIG, "grace", out)
    assert not list(tmp_path.glob("*out*"))
    out.mkdir()
    with pytest.raises(ValueError, match="is there already"):
        export_dataset(copied, CONFIG, "ada", out)


def test_a_folder_that_is_no_dataset_is_refused(copied: Workspace, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.json").write_text(json.dumps({}))
    with pytest.raises(ValueError):
        import_dataset(tmp_path / "other", copied, "eve")
    assert not (copied.root / "imported").exists()
