import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as done
from pathlib import Path

import pytest

from jobs.workspace import Workspace


def test_it_is_made_and_knows_its_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace.open(Path("a") / "b")
    assert workspace.root == tmp_path / "a" / "b"
    assert list(workspace.root.iterdir()) == []
    assert workspace.run("ada", "123") == workspace.corpus / "voices" / "ada" / "runs" / "123"
    assert workspace.report == workspace.corpus / "report" / "index.html"
    assert workspace.default_tracking_uri == f"sqlite:///{tmp_path}/a/b/mlflow.db"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write there") as refusal:
        Workspace.open(tmp_path / "file" / "w")
    assert "\n" not in str(refusal.value)


def test_one_job_at_a_time_and_the_next_when_it_has_ended(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    with workspace.lease():
        with pytest.raises(ValueError, match=f"process {os.getpid()}"), Workspace.open(tmp_path).lease():
            pass
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    with workspace.lease():
        pass


def test_the_lease_of_a_killed_job_is_free(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from jobs.workspace import Workspace\n"
        "with Workspace.open(Path(sys.argv[1])).lease():\n"
        "    sys.stdout.write('held\\n'); sys.stdout.flush(); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {job.pid}"), Workspace.open(tmp_path).lease():
            pass
        job.kill()
        job.wait()
    with Workspace.open(tmp_path).lease():
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_the_place_of_the_corpus_is_remembered(tmp_path: Path) -> None:
    assert Workspace.open(tmp_path).corpus_place == str(tmp_path / "corpus")
    given = Workspace.open(tmp_path, "s3://b/corpus/")
    assert given.corpus_place == "s3://b/corpus"
    assert Workspace.open(tmp_path) == given == Workspace.open(tmp_path, "s3://b/corpus")
    with pytest.raises(ValueError, match="lies in s3://b/corpus; give another --workspace"):
        Workspace.open(tmp_path, "s3://b/other")


@pytest.mark.parametrize("place", ["/data/corpus", "http://b/corpus", "s3:/b/corpus"])
def test_only_addresses_of_object_stores_may_hold_a_corpus(tmp_path: Path, place: str) -> None:
    with pytest.raises(ValueError, match="expected an address such as s3://bucket/corpus"):
        Workspace.open(tmp_path, place)


def test_a_workspace_with_a_corpus_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpus.json").write_text("{}")
    with pytest.raises(ValueError, match=r"lies in .*corpus; give another --workspace"):
        Workspace.open(tmp_path, "s3://b/corpus")


@pytest.mark.parametrize("name", ["100%", "what?", "a#b"])
def test_a_name_that_would_bend_the_registry_s_address_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="choose another name"):
        Workspace.open(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_job_that_waits_gets_the_lease_when_the_other_ends(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    with ThreadPoolExecutor(1) as pool:

        def wait() -> str:
            with workspace.lease(wait_s=30.0):
                return "held"

        with workspace.lease():
            waiting = pool.submit(wait)
            assert not done([waiting], timeout=0.2).done
        assert waiting.result(timeout=30) == "held"


def test_a_job_that_waited_in_vain_leaves(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    with (
        workspace.lease(),
        pytest.raises(ValueError, match="another job"),
        Workspace.open(tmp_path).lease(wait_s=0.1),
    ):
        pass
