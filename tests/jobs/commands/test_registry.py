"""promote, rollback and reproduce as they are typed: what is said, and the exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

import jobs.promote
from jobs.cli import main
from jobs.tracking import Tracker
from jobs.workspace import Workspace
from tests.jobs.stores import free_port
from tests.jobs.test_promote import GOOD, add


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two versions of `anna`, the second one worse."""
    monkeypatch.setattr(jobs.promote, "speaks_alone", lambda *_, **__: {"seconds": 1.0, "level": 0.1})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "work"
    tracker = Tracker(Workspace.open(root).default_tracking_uri, "corpus")
    add(tracker, tmp_path, "anna", GOOD)
    add(tracker, tmp_path, "anna", tuple(rate + 0.2 for rate in GOOD))
    return root


def test_promote_refuses_forces_and_rolls_back(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def gsv(*words: str) -> tuple[int, str, str]:
        code = main([*words, "--workspace", str(workspace)])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, _ = gsv("promote", "anna", "--version", "1")
    assert (code, out.splitlines()) == (
        0,
        ["anna: version 1 is now champion-nano, the first", "anna: version 1 is now champion, the first"],
    )
    code, out, err = gsv("promote", "anna")
    assert code == 3
    assert err.startswith("gsv: anna: version 2 stays out: worse than version 1: character error rate 0.300")
    code, out, _ = gsv("promote", "anna", "--json")
    record: dict[str, Any] = json.loads(out)
    assert (code, record["is_champion"], record["comparisons"][0]["sentences"]) == (3, False, 6)
    assert gsv("promote", "anna", "--force")[0] == 2
    assert gsv("promote", "anna", "--reason", "x")[0] == 2
    code, out, _ = gsv("promote", "anna", "--force", "--reason", "asked for", "--dry-run")
    assert (code, "version 2 would become champion" in out) == (0, True)
    code, out, _ = gsv("promote", "anna", "--force", "--reason", "asked for")
    assert "forced, despite: worse than version 1" in out
    assert "anna: version 2 is now champion, which was version 1" in out
    assert gsv("promote", "anna")[1] == "anna: version 2 is the champion already\n"
    code, out, _ = gsv("rollback", "anna")
    assert out.splitlines() == [
        "anna: champion is version 1 again, it was 2",
        "anna: champion-nano is version 1 again, it was 2",
    ]
    code, _, err = gsv("rollback", "anna")
    assert (code, err) == (2, "gsv: voice 'anna': champion is version 1, and there was none before it\n")
    code, _, err = gsv("promote", "nobody")
    assert (code, err.count("\n")) == (2, 1)
    assert "no voice 'nobody'" in err
    code, out, _ = gsv("reproduce", "--voice", "anna")
    assert code == 3
    assert "It cannot be trained again here." in out
    code, out, _ = gsv("reproduce", "--voice", "anna", "--run", "--json")
    assert (code, json.loads(out)["trained_again"]) == (3, None)
    code, _, err = gsv("reproduce", "--voice", "anna", "--alias", "best")
    assert (code, "no alias 'best'; it has: challenger" in err) == (2, True)


def test_a_tracker_that_is_down_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    for words in (["promote", "anna"], ["rollback", "anna"], ["reproduce", "--voice", "anna"]):
        assert main([*words, "--workspace", str(tmp_path), "--tracking-uri", uri]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "cannot be reached" in err
