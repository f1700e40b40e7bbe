import json
from pathlib import Path

import pytest

from jobs.cli import main
from tests.jobs.test_select import make_corpus


def test_a_dry_run_shows_bounds_and_voices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_corpus(tmp_path)
    where = ["--workspace", str(tmp_path)]
    assert main(["select", *where, "--dry-run", "--set", "selection.bounds.least_snr_db=20", "--voice", "anna"]) == 0
    shown = capsys.readouterr().out
    assert "selection.bounds.least_snr_db" in shown
    assert "flow.bounds" not in shown
    assert "snr_db 3" in shown
    assert "no quality for 1 clips: its model answered with NaN" in shown
    assert shown.rstrip().endswith("nothing was written")
    assert main(["select", *where, "--dry-run", "--set", "flow.bounds.least_snr_db=20"]) == 0
    assert "makes every unit anew" in capsys.readouterr().out
    assert not list(tmp_path.rglob("selection/*"))


def test_select_writes_and_answers_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_corpus(tmp_path)
    assert main(["select", "--workspace", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [(voice["voice"], voice["kept"]) for voice in record["voices"]] == [("anna", 7), ("ben", 7)]
    assert record["bounds"] == []
    assert len(list(tmp_path.rglob("selection/*.parquet"))) == 2


def test_wrong_use_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", "--workspace", str(tmp_path)]) == 2
    assert "no corpus in it" in capsys.readouterr().err
    make_corpus(tmp_path)
    assert main(["select", "--workspace", str(tmp_path), "--set", "selection.least_centroid_cosine=0.5"]) == 2
    assert "selection.least_centroid_cosine is not known" in capsys.readouterr().err
