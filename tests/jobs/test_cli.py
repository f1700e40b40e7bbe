import json
import os
from pathlib import Path

import pytest

from jobs.cli import main


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings" / "anna"
    folder.mkdir(parents=True)
    (folder / "a.wav").write_bytes(b"no audio, but a file")
    return folder.parent


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error of a call that is wrong use."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("gsv: ")
    return line


def test_an_empty_folder_is_named_with_the_remedy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    line = refused(capsys, "onboard", empty, "--workspace", tmp_path / "w")
    assert str(empty) in line
    assert "sub-folder per voice" in line


def test_a_missing_folder_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such folder" in refused(capsys, "prepare", tmp_path / "nowhere", "--workspace", tmp_path / "w")


def test_a_missing_base_is_named_with_the_command_that_gets_it(
    capsys: pytest.CaptureFixture[str], recordings: Path, tmp_path: Path
) -> None:
    line = refused(capsys, "onboard", recordings, "--workspace", tmp_path / "w", "--base", "v2Pro")
    assert "s1v3.ckpt" in line
    assert "gsv models pull v2Pro" in line


def test_an_unknown_base_lists_those_there_are(
    capsys: pytest.CaptureFixture[str], recordings: Path, tmp_path: Path
) -> None:
    line = refused(capsys, "onboard", recordings, "--workspace", tmp_path / "w", "--base", "v9")
    assert "nano" in line
    assert "v2Pro" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_workspace_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], recordings: Path, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot write" in refused(capsys, "onboard", recordings, "--workspace", locked / "w")


def test_a_workspace_that_is_a_file_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], recordings: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    line = refused(capsys, "onboard", recordings, "--workspace", file / "w")
    assert "cannot write there" in line


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("nonsense=1", "nonsense is not known"),
        ("flow.longest_s=never", "expected float"),
        ("flow", "expected NAME=VALUE"),
        ("flow.longest_s=1.0", "shortest_s"),
        ("flow.engines.recogniser=parrot", "pocketsphinx"),
        ("training.semantic={strides: 3}", "no field strides"),
    ],
)
def test_a_wrong_setting_is_named(
    capsys: pytest.CaptureFixture[str], recordings: Path, tmp_path: Path, setting: str, expected: str
) -> None:
    assert expected in refused(capsys, "onboard", recordings, "--workspace", tmp_path / "w", "--set", setting)


def test_an_unknown_verb_or_option_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["sing"], ["onboard", "--loudly"], []):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["promote", "anna", "--loudly"])
    assert capsys.readouterr().err == (
        "gsv: promote does not understand '--loudly'; `gsv promote --help` says what it takes\n"
    )


def test_every_verb_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.cli import VERBS

    for verb in VERBS:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
        assert f"example: gsv {verb}" in " ".join(capsys.readouterr().out.split())


def test_a_dry_run_says_what_would_be_done_and_does_not(
    capsys: pytest.CaptureFixture[str], recordings: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "w"
    assert main(["onboard", str(recordings), "--workspace", str(workspace), "--dry-run", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["voices"], record["recordings"], record["units_to_do"]) == (1, 1, 1)
    assert not list(workspace.rglob("*.done"))
    assert not list(workspace.rglob("corpus/plan/*"))


def test_parts_want_a_corpus(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for verb in ("train", "evaluate", "register", "report"):
        assert "gsv prepare" in refused(capsys, verb, "--workspace", tmp_path / "w")


def test_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--workspace", str(tmp_path), "--json"]) == 0
    findings = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["torch"]["ok"]
    assert findings["base nano"]["ok"]


def test_models_are_listed_and_a_missing_one_is_not_verified(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["models", "list", "--models", str(tmp_path), "--json"]) == 0
    rows = {row["release"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["nano"]["state"] == "built in"
    assert rows["v2"]["state"] == "not here"
    assert "gsv models pull" in refused(capsys, "models", "verify", "v2", "--models", tmp_path)
    assert "name a release" in refused(capsys, "models", "pull", "--models", tmp_path)


def test_a_second_job_in_the_same_workspace_is_sent_away(
    capsys: pytest.CaptureFixture[str], recordings: Path, tmp_path: Path
) -> None:
    from jobs.workspace import Workspace

    workspace = Workspace.open(tmp_path / "w")
    with workspace.lease():
        line = refused(capsys, "onboard", recordings, "--workspace", workspace.root)
    assert str(os.getpid()) in line


def test_a_workspace_inside_the_recordings_is_refused(
    capsys: pytest.CaptureFixture[str], recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recordings)
    assert "inside the recordings" in refused(capsys, "prepare", ".", "--dry-run")
    assert [path.name for path in recordings.iterdir()] == ["anna"]


def test_commands_that_are_shown_can_be_pasted() -> None:
    import shlex

    from jobs.commands.onboarding import _mlflow_command

    uri = "sqlite:////tmp/my work/mlflow.db"
    assert shlex.split(_mlflow_command(uri))[-1] == uri


def test_doctor_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    # Ray puts packages it carries on the path, so a test process may import what an installation lacks.
    import subprocess
    import sys

    command = [sys.executable, "-m", "jobs.cli", "doctor", "--workspace", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "machine" in {finding["what"] for finding in json.loads(done.stdout)}


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(15)])
def test_being_stopped_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ending: BaseException
) -> None:
    def stopped(*_: object) -> None:
        raise ending

    monkeypatch.setattr("jobs.models.list_releases", stopped)
    assert main(["models", "list"]) == 1
    assert capsys.readouterr().err == "gsv: interrupted; run the same command again to go on\n"


def test_a_report_that_cannot_be_written_is_wrong_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def closed(*_: object) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("jobs.report.report", closed)
    out = tmp_path / "page.html"
    line = refused(capsys, "report", "--workspace", tmp_path / "w", "--out", out)
    assert f"{out}: Permission denied" in line
