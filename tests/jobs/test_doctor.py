import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from gsv_core.checkpoints.releases import RELEASES
from jobs.config import load_config
from jobs.doctor import Finding, examine


def findings(workspace: Path, *overrides: str) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(load_config(None, list(overrides)), workspace)}


def test_this_machine_is_fit_for_nano(tmp_path: Path) -> None:
    found = findings(tmp_path / "w")
    assert {what for what, finding in found.items() if finding.needed and not finding.ok} == set()
    assert {"python", "torch", "ray", "mlflow", "machine", "workspace", "base nano"} <= found.keys()
    assert "not speech" in found["base nano"].says
    assert not found["gpu"].needed
    assert all(finding.remedy for finding in found.values() if not finding.ok and finding.needed)


def test_a_missing_base_comes_with_the_command_that_gets_it(tmp_path: Path) -> None:
    base = findings(tmp_path, "flow.release=v2Pro")["base v2Pro"]
    assert not base.ok
    assert base.needed
    assert "gsv models pull v2Pro" in base.remedy
    files = RELEASES["v2Pro"].files
    for name in files[1:]:
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).touch()
    some = findings(tmp_path, "flow.release=v2Pro", f"flow.base_folder={tmp_path / 'm'}")["base v2Pro"]
    assert some.says == f"1 of {len(files)} files are missing, the first is {files[0]}"
    (tmp_path / "m" / files[0]).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "m" / files[0]).touch()
    assert findings(tmp_path, "flow.release=v2Pro", f"flow.base_folder={tmp_path / 'm'}")["base v2Pro"].ok


def test_a_workspace_that_cannot_be_used_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    workspace = findings(tmp_path / "file" / "w")["workspace"]
    assert not workspace.ok
    assert "cannot write there" in workspace.says


def test_a_full_disk_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100 << 30, 99 << 30, 1 << 30))
    workspace = findings(tmp_path)["workspace"]
    assert not workspace.ok
    assert "GB are needed" in workspace.remedy
