import json
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.workspace import Workspace
from pipelines.storage import LocalStorage
from tests.end_to_end.bad_store import bad_store
from tests.pipelines.made_corpus import commit_unit, describe


@pytest.fixture
def corpus(tmp_path: Path) -> LocalStorage:
    corpus = LocalStorage(Workspace.open(tmp_path).corpus)
    commit_unit(corpus, config="old")
    describe(corpus, commit_unit(corpus))
    return corpus


def test_verify_says_what_is_damaged_and_repairs_it(
    corpus: LocalStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--workspace", str(tmp_path)]) == 0
    assert "2 units, 6 clips, 8 files" in capsys.readouterr().out
    (shard, *_) = corpus.names("voices/anna/shards")
    corpus.write(f"voices/anna/shards/{shard}", b"")
    assert main(["verify", "--workspace", str(tmp_path), "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["damage"][0]["path"].endswith(shard)
    assert main(["verify", "--workspace", str(tmp_path), "--repair"]) == 0
    assert "1 units discarded" in capsys.readouterr().out


def test_gc_removes_only_when_told_to(corpus: LocalStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--workspace", str(tmp_path)]) == 0
    assert "nothing was removed: --yes removes them" in capsys.readouterr().out
    assert len(corpus.names("voices/anna/units")) == 2
    assert main(["gc", "--workspace", str(tmp_path), "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"]
    assert len(corpus.names("voices/anna/units")) == 1
    assert main(["gc", "--workspace", str(tmp_path)]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_a_corpus_in_an_object_store_is_checked_and_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = str(tmp_path / "w")
    with bad_store():
        opened = Workspace.open(Path(workspace), "s3://corpora/c")
        corpus = opened.storage
        commit_unit(corpus, config="old")  # type: ignore[arg-type]
        describe(corpus, commit_unit(corpus))  # type: ignore[arg-type]
        assert main(["verify", "--workspace", workspace]) == 0
        assert "2 units, 6 clips, 8 files" in capsys.readouterr().out
        assert main(["gc", "--workspace", workspace, "--yes"]) == 0
        assert len(corpus.names("voices/anna/units")) == 1
        capsys.readouterr()
        assert main(["verify", "--workspace", workspace, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["units"] == 1
        assert json.loads(corpus.read("lease/00000003.json"))["free"]
        assert not opened.corpus.exists()
