from pathlib import Path

import pytest

from gsv_core.networks.pretrained import check_complete, folder_digest


def _folder(path: Path, weights: bytes) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_the_digest_follows_the_content_and_not_the_place(tmp_path):
    first, same, other = (
        _folder(tmp_path / name, content) for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2"))
    )
    assert folder_digest(first) == folder_digest(same) != folder_digest(other)
    (same / "README.md").write_text("not read by anything")
    assert folder_digest(first) == folder_digest(same)


def test_a_folder_without_config_is_refused(tmp_path):
    folder = _folder(tmp_path / "a", b"1")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="gsv models pull"):
        folder_digest(folder)


def test_only_unused_parameters_may_be_missing():
    loading = {"missing_keys": ["encoder.mask"], "mismatched_keys": []}
    check_complete(Path("x"), loading, unused=("mask",))
    with pytest.raises(ValueError, match=r"encoder\.mask"):
        check_complete(Path("x"), loading)
    with pytest.raises(ValueError, match="misshapen"):
        check_complete(Path("x"), {"missing_keys": [], "mismatched_keys": ["a"]})
