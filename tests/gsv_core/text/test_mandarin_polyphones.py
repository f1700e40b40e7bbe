"""A network written here byte by byte in ONNX, of the published one's inputs and output.

It answers by the character after the one it is asked about.
"""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from gsv_core.text.front_end import engines, phonemise
from gsv_core.text.mandarin import read
from gsv_core.text.mandarin_polyphones import load_polyphones, polyphones_digest

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "行", "長", "銀", "走", "很", "的"]
POLYPHONIC = [("行", "ㄏㄤ2"), ("行", "ㄒㄧㄥ2"), ("長", "ㄔㄤ2"), ("長", "ㄓㄤ3"), ("一", "ㄧ1")]
READINGS = sorted({reading for _, reading in POLYPHONIC})
BOPOMOFO = {"ㄏㄤ": "hang", "ㄒㄧㄥ": "xing", "ㄔㄤ": "chang", "ㄓㄤ": "zhang", "ㄧ": "yi", "ㄗㄡ": "zou"}
TRADITIONAL = str.maketrans({"长": "長", "银": "銀"})
# After this character that reading: 長 行長; [SEP] 銀行.
FOLLOWED_BY = {"長": "ㄏㄤ2", "走": "ㄒㄧㄥ2", "的": "ㄔㄤ2", "很": "ㄔㄤ2", "[SEP]": "ㄏㄤ2"}


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protocol buffer message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _tensor(name: str, array: np.ndarray) -> bytes:
    kind = {"float32": 1, "int64": 7}[array.dtype.name]
    dims = b"".join(_field(1, size) for size in array.shape)
    return dims + _field(2, kind) + _field(8, name) + _field(9, array.tobytes())


def _value(name: str, kind: int, *shape: str | int) -> bytes:
    dims = b"".join(_field(1, _field(1, size) if isinstance(size, int) else _field(2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def _node(operator: str, inputs: list[str], output: str, axis: int | None = None) -> bytes:
    attribute = b"" if axis is None else _field(5, _field(1, "axis") + _field(3, axis) + _field(20, 2))
    return b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, operator) + attribute


def write_model(path: Path, width: int = len(READINGS)) -> None:
    """probabilities = table[token after the asked one] x phoneme_mask, in the published model's inputs and output."""
    table = np.full((len(VOCABULARY), width), 0.01, np.float32)
    for character, reading in FOLLOWED_BY.items():
        table[VOCABULARY.index(character), READINGS.index(reading)] = 1
    nodes = [
        _node("Add", ["position_ids", "one"], "next"),
        _node("Unsqueeze", ["next", "axes"], "next_column"),
        _node("GatherElements", ["input_ids", "next_column"], "token_column", axis=1),
        _node("Squeeze", ["token_column", "axes"], "token"),
        _node("Gather", ["table", "token"], "scores", axis=0),
        _node("Mul", ["scores", "phoneme_mask"], "probabilities"),
    ]
    one = np.array([1], np.int64)
    inputs = [_value(name, 7, "B", "T") for name in ("input_ids", "token_type_ids", "attention_mask")]
    inputs += [_value("phoneme_mask", 1, "B", width), _value("char_ids", 7, "B"), _value("position_ids", 7, "B")]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "asks_the_next")
    graph += b"".join(
        _field(5, _tensor(name, array)) for name, array in (("one", one), ("axes", one), ("table", table))
    )
    graph += b"".join(_field(11, value) for value in inputs) + _field(12, _value("probabilities", 1, "B", width))
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, struct.pack("B", 13)[0])))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "g2pW.onnx")
    (tmp_path / "POLYPHONIC_CHARS.txt").write_text("\n".join("\t".join(pair) for pair in POLYPHONIC), "utf-8")
    (tmp_path / "MONOPHONIC_CHARS.txt").write_text("走\tㄗㄡ3", "utf-8")
    (tmp_path / "bopomofo_to_pinyin_wo_tune_dict.json").write_text(json.dumps(BOPOMOFO), "utf-8")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY), "utf-8")
    # The published folder holds a Python file; running it would show.
    (tmp_path / "config.py").write_text("raise SystemExit('config.py was run')", "utf-8")
    return tmp_path


def load(folder: Path):
    pytest.importorskip("onnxruntime", reason="g2pW runs in onnxruntime, which is not installed")
    return load_polyphones(folder, folder / "vocab.txt", traditional=lambda text: text.translate(TRADITIONAL))


def test_what_follows_decides(folder):
    polyphones = load(folder)
    assert polyphones.read("银行") == [None, "hang2"]
    assert polyphones.read("行长的") == ["hang2", "chang2", None]
    assert polyphones.read("行走") == ["xing2", "zou3"]


def test_only_readings_of_the_character_are_answered(folder):
    # after 很 the network wants chang2, which 行 cannot be
    assert load(folder).read("行很")[0] in ("hang2", "xing2")


def test_tone_rules_keep_what_the_model_is_never_asked_about(folder):
    assert load(folder).read("一行") == [None, "hang2"]


def test_far_characters_are_out_of_the_window(folder):
    polyphones = load(folder)
    far = "的" * 40
    assert polyphones.read(f"{far}行走{far}行长的")[40] == "xing2"


def test_mandarin_is_read_with_it(folder):
    polyphones = load(folder)
    assert read("长的").phonemes[:2] == ("zh", "ang3")
    assert read("长的", polyphones=polyphones).phonemes[:2] == ("ch", "ang2")
    assert phonemise("长的", "zh", polyphones=polyphones).phonemes[:2] == ("ch", "ang2")
    reading = read("长的，行走。", polyphones=polyphones)
    assert reading.phonemes_per_character == (2, 2, 1, 2, 2, 1)


def test_corrections_in_the_folder_win(folder):
    (folder / "polyphonic.rep").write_text("行走: ['hang2', 'zou3']\n长: ['zhang3']\n", "utf-8")
    polyphones = load(folder)
    assert read("行走", polyphones=polyphones).phonemes == ("h", "ang2", "z", "ou3")
    # third tone before a third tone
    assert read("长很", polyphones=polyphones).phonemes[:2] == ("zh", "ang2")
    (folder / "polyphonic.rep").write_text("行走 = nothing\n", "utf-8")
    with pytest.raises(ValueError, match="line 1"):
        load(folder)


def test_it_is_named_in_the_metadata(folder):
    found = engines(load(folder))
    assert len(found["g2pW"]) == 16
    assert "g2pW" not in engines()


@pytest.mark.parametrize(
    "name", ["g2pW.onnx", "POLYPHONIC_CHARS.txt", "bopomofo_to_pinyin_wo_tune_dict.json", "vocab.txt"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        load(folder)


def test_lists_of_another_model_are_refused(folder):
    write_model(folder / "g2pW.onnx", width=17)
    with pytest.raises(ValueError, match="17"):
        load(folder)


def test_a_folder_of_another_bert_is_refused(folder):
    (folder / "vocab.txt").write_text("a\nb\n", "utf-8")
    with pytest.raises(ValueError, match="token list"):
        load(folder)


def test_a_conversion_that_is_not_one_to_one_is_refused(folder):
    pytest.importorskip("onnxruntime", reason="g2pW runs in onnxruntime, which is not installed")
    polyphones = load_polyphones(folder, folder / "vocab.txt", traditional=lambda text: text * 2)
    with pytest.raises(ValueError, match="one to one"):
        polyphones.read("行走")


def test_every_file_is_in_the_digest_and_another_model_is_refused(folder):
    digest = polyphones_digest(folder)
    assert load_polyphones(folder, traditional=str, expected=digest).digest == digest
    (folder / "polyphonic.rep").write_text("银行: ['yin2', 'hang2']\n", "utf-8")
    assert polyphones_digest(folder) != digest
    with pytest.raises(ValueError, match=f"needed is {digest}"):
        load_polyphones(folder, expected=digest)


def test_the_token_list_of_a_base_beside_it_serves(folder, tmp_path):
    (folder / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json in"):
        polyphones_digest(folder)
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}), "utf-8")
    pytest.importorskip("onnxruntime", reason="g2pW runs in onnxruntime, which is not installed")
    polyphones = load_polyphones(folder, traditional=lambda text: text.translate(TRADITIONAL))
    assert polyphones.read("行走") == ["xing2", "zou3"]
