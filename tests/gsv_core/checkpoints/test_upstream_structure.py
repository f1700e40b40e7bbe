"""Hostile and broken files, made here, and a great many random ones: one line of refusal, and nothing ever runs."""

import builtins
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsv_core.checkpoints import upstream_structure
from gsv_core.checkpoints.upstream import UpstreamFile, read_upstream
from gsv_core.checkpoints.upstream_recognition import FileDescription, inspect_file
from gsv_core.checkpoints.upstream_structure import StoredTensor, checked_file
from gsv_core.checkpoints.upstream_writing import write_upstream


class _Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def touching(canary):
    """What would leave the file `canary` behind if it ran, in several ways, by the name a refusal gives."""
    return {
        "posix.system": _Calls(os.system, f"touch {canary}"),
        "builtins.eval": _Calls(builtins.eval, f"open({str(canary)!r}, 'w')"),
        "builtins.exec": _Calls(builtins.exec, f"open({str(canary)!r}, 'w')"),
        "io.open": _Calls(io.open, str(canary), "w"),
        "builtins.getattr": _Calls(getattr, str, "upper"),
    }


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def refusal_of(path):
    """The one line with which both ways of reading refuse `path`."""
    lines = []
    for read in (inspect_file, read_upstream):
        with pytest.raises(ValueError) as error:
            read(path)
        lines.append(str(error.value))
    assert all("\n" not in line and str(path) in line for line in lines)
    return lines[0]


def with_header(path, header):
    path.write_bytes(header + path.read_bytes()[2:])
    return path


@pytest.mark.parametrize("asks", ["posix.system", "builtins.eval", "builtins.exec", "io.open", "builtins.getattr"])
@pytest.mark.parametrize(("header", "zipped"), [(None, True), (b"05", True), (None, False)])
def test_a_pickle_that_asks_for_a_function_is_refused_by_name_and_never_run(tmp_path, canary, asks, header, zipped):
    evil = touching(canary)[asks]
    for number, content in enumerate(
        [evil, {"weight": {"a": torch.ones(2)}, "config": evil}, {"weight": OrderedDict(a=[evil])}]
    ):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        line = refusal_of(with_header(path, header) if header else path)
        assert f"asks for {asks}" in line.replace("__builtin__", "builtins")  # as protocol 2 calls it


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_pickles_of_every_protocol_are_refused(tmp_path, canary, protocol):
    path = tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps(touching(canary)["posix.system"], protocol))
    refusal_of(path)
    path.write_bytes(pickle.dumps({"weight": 1}, protocol))
    refusal_of(path)


def test_a_settings_class_cannot_be_called_and_no_other_object_be_filled(tmp_path):
    for data, reason in (
        (b"\x80\x02cutils\nHParams\n)R.", "calls utils.HParams"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "makes an object of collections.OrderedDict"),
        (b"\x80\x02cutils\nHParams\n}b.", "makes no sense"),
        (b"\x80\x02}(X\x01\x00\x00\x00aK\x01b.", "is damaged"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02(ios\nsystem\n.", "asks for os.system"),
        (b"\x80\x02Pdata\n.", "PERSID"),
    ):
        assert reason in refusal_of(archive(tmp_path / "x.pth", data))


def archive(path, data, **more):
    """A zip archive as torch's, with `data` as its pickle and further members by name."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        for name, content in more.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


def tensor_pickle(*, count, shape, strides, offset=0):
    """A pickle of {"weight": {"a": tensor}}, whose numbers may lie."""

    def numbers(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + numbers([count])[1:-1]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + numbers([offset])[1:-1]
    tensor += numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text(b"weight") + b"}" + text(b"a") + tensor + b"ss."


def test_tensors_that_lie_about_their_storage_are_refused_before_they_are_made(tmp_path):
    path = tmp_path / "x.pth"
    good = tensor_pickle(count=4, shape=(2, 2), strides=(2, 1))
    with checked_file(archive(path, good, data__0=bytes(16))) as (_, structure):
        assert structure.content == {"weight": {"a": StoredTensor("float32", (2, 2), 16)}}
    claims = tensor_pickle(count=1 << 40, shape=(2, 2), strides=(2, 1))
    assert "storage '0' has 16 bytes" in refusal_of(archive(path, claims, data__0=bytes(16)))
    assert "storage '0' is missing" in refusal_of(archive(path, good))
    beyond = tensor_pickle(count=4, shape=(2, 2), strides=(3, 1))
    assert "reaches beyond" in refusal_of(archive(path, beyond, data__0=bytes(16)))
    expanded = tensor_pickle(count=4, shape=(1 << 40,), strides=(0,))
    assert "reaches beyond" in refusal_of(archive(path, expanded, data__0=bytes(16)))
    negative = tensor_pickle(count=4, shape=(2, 2), strides=(2, 1), offset=-1)
    assert "impossible size" in refusal_of(archive(path, negative, data__0=bytes(16)))


def test_one_tensor_under_thousands_of_names_is_refused(tmp_path):
    tensor = torch.zeros(1 << 16)
    torch.save({f"resblocks.0.convs1.{number}": tensor for number in range(5000)}, tmp_path / "many.pth")
    assert "unpacks to" in refusal_of(tmp_path / "many.pth")


def test_archives_that_unpack_to_more_or_elsewhere_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10_000_000))
    assert "unpacks to more than it is" in refusal_of(path)
    for name in ("/etc/passwd", "../up", "a/../../b", "c:\\x"):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", b"N.")
            file.writestr(name, b"")
        assert "member outside" in refusal_of(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"N.")
        for number in range(20_001):
            file.writestr(f"archive/data/{number}", b"")
    assert "20002 members" in refusal_of(path)
    archive(path, b"N.", constants__pkl=b"N.", **{"constants.pkl": b"N."})
    assert "TorchScript" in refusal_of(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", b"")
    assert "no data.pkl" in refusal_of(path)
    archive(path, bytes(9 << 20))
    assert "far beyond any checkpoint" in refusal_of(path)
    archive(path, b"N.", byteorder=b"big")
    assert "byte order" in refusal_of(path)


def test_members_that_overlap_are_refused(tmp_path):
    path = archive(tmp_path / "x.pth", b"N.", data__0=bytes(100))
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", directory + 4)
    struct.pack_into("<I", data, second + 42, 10)  # where its local header is said to be
    path.write_bytes(data)
    assert "overlap" in refusal_of(path)


def test_bytes_before_an_archive_are_refused(tmp_path):
    path = archive(tmp_path / "x.pth", b"N.")
    path.write_bytes(b"PK junk in front " + path.read_bytes())
    assert "begin late" in refusal_of(path)


def test_deep_and_cyclic_values_are_refused(tmp_path):
    deep = b"\x80\x02}X\x06\x00\x00\x00config" + b"]" * 100_000 + b"a" * 99_999 + b"s."
    refusal_of(archive(tmp_path / "deep.pth", deep))
    as_key = b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns."
    refusal_of(archive(tmp_path / "key.pth", as_key))
    weights = {"cfm.estimator.x.lora_A.y": torch.ones(1)}
    cycle = {}
    cycle["itself"] = cycle
    torch.save({"weight": weights, "config": cycle}, tmp_path / "cycle.pth")
    assert "settings that are far larger" in refusal_of(tmp_path / "cycle.pth")


def test_files_of_torch_before_1_6_are_read_as_safely(tmp_path):
    path = tmp_path / "old.pth"
    weights = {"weight": {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}}
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    read = read_upstream(path).weights
    assert torch.equal(read["a"], weights["weight"]["a"])
    assert read["n"] == 3
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert "truncated" in refusal_of(path)


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    for name in ("absent.pth", "loop.pth"):
        assert "cannot be read" in refusal_of(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.pth")
    assert "pipe or device" in refusal_of(tmp_path / "pipe.pth")
    assert "folder" in refusal_of(tmp_path)


def test_a_pickle_of_endless_steps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(upstream_structure, "_MOST_OPCODES", 1000)
    assert "more than 1000 steps" in refusal_of(archive(tmp_path / "x.pth", b"\x80\x02" + b"(" * 2000 + b"."))


@pytest.mark.parametrize("header", [b"PK", b"05"])
def test_a_bit_that_changed_on_the_way_is_noticed_when_tensors_are_read(tmp_path, header):
    path = tmp_path / "voice.pth"
    write_upstream(path, UpstreamFile(weights={"enc_p.mrte.a": torch.arange(100.0)}, header=header))
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(100.0).numpy().tobytes()) + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not what was written"):
        read_upstream(path)


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.pth"
    weights = {"cfm.estimator.x.lora_A.y": torch.ones(4), "ref_enc.z": torch.zeros(2, dtype=torch.int64)}
    config = {"model": {"version": "v3", "n_layers": 2}, "train": {"exp_dir": "/home/x"}}
    file = UpstreamFile(weights=weights, config=config, config_is_object=True, info="1epoch_2iteration", header=b"03")
    write_upstream(path, file)
    inspect_file(path)
    return path.read_bytes()


def survives(path: Path, data: bytes) -> None:
    """Neither way of reading `data` may raise anything but a ValueError of one line."""
    path.write_bytes(data)
    for read, kind in ((inspect_file, FileDescription), (read_upstream, UpstreamFile)):
        try:
            assert isinstance(read(path), kind)
        except ValueError as error:
            lines = str(error).splitlines()
        else:
            lines = [""]
        assert len(lines) == 1


QUIET = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIET
@given(
    data=st.binary(max_size=300), start=st.sampled_from([b"", b"PK\x03\x04", b"05\x03\x04", b"\x80\x02", b"\x80\x04"])
)
def test_random_bytes_are_refused(tmp_path, data, start):
    survives(tmp_path / "x.pth", start + data)


@QUIET
@given(data=st.binary(max_size=200))
def test_random_pickles_in_a_sound_archive_are_refused(tmp_path, data):
    survives(archive(tmp_path / "x.pth", b"\x80\x02" + data + b"."), (tmp_path / "x.pth").read_bytes())


@QUIET
@given(draw=st.data())
def test_good_files_that_were_changed_or_cut_anywhere_are_read_or_refused(tmp_path, good_file, draw):
    data = bytearray(good_file)
    for _ in range(draw.draw(st.integers(0, 4))):
        position = draw.draw(st.integers(0, len(data) - 1))
        data[position] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    survives(tmp_path / "x.pth", bytes(data[:cut]))


def test_a_file_cut_at_any_point_is_refused(tmp_path, good_file):
    for length in range(0, len(good_file), 7):
        (tmp_path / "x.pth").write_bytes(good_file[:length])
        refusal_of(tmp_path / "x.pth")
