import json
from pathlib import Path

import pytest
import torch

from gsv_core.checkpoints.releases import Release
from jobs.cli import main
from jobs.inspect import inspect_files
from tests.jobs.made_voices import small_base, small_release, write_trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    spec = small_release(Release.V2)
    return write_trained(tmp_path_factory.mktemp("trained"), small_base(Release.V2), spec)


def test_files_are_described_and_the_wrong_ones_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    found = inspect_files([*trained, tmp_path / "empty.pth"])
    assert [description.release for description in found.descriptions] == ["v2 or later", "v2"]
    assert found.damaged == ()
    (refusal,) = found.refusals
    assert "empty.pth is empty" in refusal
    assert "this is v2: 732 phonemes, 322 expected" in inspect_files(trained[1:], expected="v1").refusals[0]
    with pytest.raises(ValueError, match="v9"):
        inspect_files(trained, expected="v9")


def test_the_command_prints_a_table_or_json_and_ends_as_it_should(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *map(str, trained)]) == 0
    shown = capsys.readouterr().out
    assert "anna_e8_s200.pth" in shown
    assert "8epoch_200iteration" in shown
    assert main(["inspect", "--json", *map(str, trained)]) == 0
    assert [one["part"] for one in json.loads(capsys.readouterr().out)] == ["text-to-semantic", "semantic-to-wave"]
    (tmp_path / "evil.pth").write_bytes(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")
    assert main(["inspect", str(trained[0]), str(tmp_path / "evil.pth")]) == 2
    captured = capsys.readouterr()
    assert "anna-e15.ckpt" in captured.out
    assert captured.err.count("\n") == 1
    assert "asks for posix.system" in captured.err


def test_a_file_that_is_not_whole_ends_with_1(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = torch.load(trained[0], weights_only=True)["weight"]
    del weights["model.ar_predict_layer.weight"]
    torch.save({"weight": weights, "config": {"model": {"n_layer": 2}}}, tmp_path / "a.ckpt")
    assert main(["inspect", str(tmp_path / "a.ckpt")]) == 1
    assert "not whole: 1 missing (ar_predict_layer.weight)" in capsys.readouterr().out
