import hashlib
import json
from pathlib import Path

import pytest

from gsv_core.checkpoints.releases import RELEASES, Release
from jobs.cli import main
from jobs.models import list_releases, pull_release, verify_release


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """A folder with something under every name that v2 needs."""
    folder = tmp_path / "carried"
    for name in RELEASES["v2"].files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"content of {name}".encode())
    return folder


def state_of(release: str, folder: Path) -> object:
    return {one.release: one.state for one in list_releases(folder)}[Release(release)]


def test_what_is_carried_in_is_locked_and_checked(carried: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert state_of("nano", models) == "built in"
    assert state_of("v2", models) == "not here"
    names = pull_release("v2", models, carried)
    assert names == list(RELEASES["v2"].files)
    assert state_of("v2", models) == "here, locked"
    locked = json.loads((models / "files.lock.json").read_text())["files"]
    for name in names:
        assert locked[name]["sha256"] == hashlib.sha256((carried / name).read_bytes()).hexdigest()
    assert verify_release("v2", models) == names
    (models / names[0]).write_bytes(b"something else")
    with pytest.raises(ValueError, match=Path(names[0]).name):
        verify_release("v2", models)
    (models / names[0]).unlink()
    assert state_of("v2", models) == "1 missing"


def test_files_without_a_lock_are_told_apart(carried: Path) -> None:
    assert state_of("v2", carried) == "here, not locked"


def test_what_the_folder_lacks_is_named(carried: Path, tmp_path: Path) -> None:
    missing = RELEASES["v2"].files[-1]
    (carried / missing).unlink()
    with pytest.raises(ValueError, match=Path(missing).name):
        pull_release("v2", tmp_path / "models", carried)


def test_nano_needs_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="built in"):
        pull_release("nano", tmp_path, None)
    assert verify_release("nano", tmp_path) == []
    with pytest.raises(ValueError, match="v9"):
        verify_release("v9", tmp_path)


def test_the_list_says_what_is_here_what_is_missing_and_where_it_comes_from(
    carried: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = RELEASES["v2"].files[0]
    (carried / missing).unlink()
    assert main(["models", "list", "--models", str(carried)]) == 0
    (v2,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("v2 "))
    assert "1 missing" in v2
    assert main(["models", "list", "v2", "--models", str(carried)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in RELEASES["v2"].files)
    assert shown.count("missing") == 2  # in its row, and in the sentence that says where from
    assert "lj1995/GPT-SoVITS" in shown
    assert main(["models", "list", "v2", "--models", str(carried), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["missing"] == [missing]
    assert record["bytes"] == sum((carried / name).stat().st_size for name in RELEASES["v2"].files[1:])
    assert main(["models", "list", "v9", "--models", str(carried)]) == 2
    assert main(["models", "list", "nano"]) == 0
    assert "built in" in capsys.readouterr().out
