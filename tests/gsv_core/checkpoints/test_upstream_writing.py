import sys
import zipfile

import pytest
import torch

from gsv_core.checkpoints.releases import Release
from gsv_core.checkpoints.upstream import UpstreamFile, read_upstream
from gsv_core.checkpoints.upstream_structure import checked_file
from gsv_core.checkpoints.upstream_writing import (
    second_file,
    second_name,
    semantic_file,
    semantic_name,
    write_upstream,
)

WEIGHTS = {"dec.a": torch.randn(3, 4), "enc_q.b": torch.ones(2), "n": torch.tensor(7)}
CONFIG = {"model": {"version": "v2Pro", "upsample_rates": [10, 8]}, "name": "anna", "pretrain": None}


@pytest.mark.parametrize(
    ("release", "rank", "header"),
    [
        (Release.V1, None, b"PK"),
        (Release.V2, None, b"PK"),
        (Release.V2_PRO, None, b"05"),
        (Release.V2_PRO_PLUS, None, b"06"),
        (Release.V3, None, b"PK"),
        (Release.V3, 4, b"03"),
        (Release.V4, 4, b"04"),
    ],
)
def test_a_second_file_has_upstreams_header_information_and_half_precision(tmp_path, release, rank, header):
    path = tmp_path / "a.pth"
    write_upstream(path, second_file(WEIGHTS, CONFIG, release, epochs=8, steps=200, lora_rank=rank))
    assert path.read_bytes()[:2] == header
    read = read_upstream(path)
    assert list(read.weights) == ["dec.a", "n"]
    assert {tensor.dtype for tensor in read.weights.values()} == {torch.float16}
    assert torch.equal(read.weights["dec.a"], WEIGHTS["dec.a"].half())
    assert (read.info, read.lora_rank, read.config_is_object) == ("8epoch_200iteration", rank, True)
    assert read.config == CONFIG


def test_a_whole_file_of_v4_would_be_taken_for_v3():
    with pytest.raises(ValueError, match="needs a LoRA file"):
        second_file(WEIGHTS, CONFIG, Release.V4, epochs=1, steps=1)
    with pytest.raises(ValueError, match="LoRA files of v3 and v4 only"):
        second_file(WEIGHTS, CONFIG, Release.V2, epochs=1, steps=1, lora_rank=4)


def test_a_gpt_file_has_plain_settings(tmp_path):
    write_upstream(tmp_path / "a.ckpt", semantic_file({"model.h": torch.ones(2)}, CONFIG, epochs=15))
    read = read_upstream(tmp_path / "a.ckpt")
    assert (read.info, read.config_is_object, read.config) == ("GPT-e15", False, CONFIG)
    with checked_file(tmp_path / "a.ckpt") as (_, structure):
        assert "utils.HParams" not in structure.names


def test_settings_are_written_by_a_name_whose_module_never_exists(tmp_path):
    before = set(sys.modules)
    write_upstream(tmp_path / "a.pth", second_file(WEIGHTS, CONFIG, Release.V2, epochs=1, steps=1))
    assert "utils" not in set(sys.modules) - before
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        data = archive.read("archive/data.pkl")
    assert data.count(b"cutils\nHParams\n") == 1  # the nested ones refer to it
    assert b"gsv_core" not in data
    with checked_file(tmp_path / "a.pth") as (_, structure):
        assert "utils.HParams" in structure.names


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a.pth", "b.pth"):
        write_upstream(tmp_path / name, second_file(WEIGHTS, CONFIG, Release.V2_PRO, epochs=1, steps=1))
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


def test_a_view_is_written_without_what_it_is_a_view_of(tmp_path):
    whole = torch.zeros(1000, 1000)
    write_upstream(tmp_path / "a.pth", UpstreamFile(weights={"a": whole[0], "b": whole.T[:2, :3]}))
    assert (tmp_path / "a.pth").stat().st_size < 10_000
    assert read_upstream(tmp_path / "a.pth").weights["b"].shape == (2, 3)


def test_other_tables_and_entries_come_back(tmp_path):
    write_upstream(tmp_path / "G_1.pth", UpstreamFile(weights={"a": torch.ones(1)}, table="model", other={"epoch": 3}))
    read = read_upstream(tmp_path / "G_1.pth")
    assert (read.table, read.other) == ("model", {"epoch": 3})
    write_upstream(tmp_path / "bare.pth", UpstreamFile(weights={"a": torch.ones(1)}, table=None))
    assert read_upstream(tmp_path / "bare.pth").table is None


def test_names_are_those_upstream_gives():
    assert semantic_name("anna", epochs=15) == "anna-e15.ckpt"
    assert second_name("anna", epochs=8, steps=200) == "anna_e8_s200.pth"
    assert second_name("anna", epochs=2, steps=8, lora_rank=32) == "anna_e2_s8_l32.pth"
