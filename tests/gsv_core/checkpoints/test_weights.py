import json

import pytest
import torch

from gsv_core.checkpoints.weights import load_weights, save_weights, write_atomically, write_json


def test_tensors_and_metadata_come_back(tmp_path):
    path = tmp_path / "new" / "folder" / "weights.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor([1, 2])}
    save_weights(path, tensors, {"step": "40"})
    again, metadata = load_weights(path)
    assert metadata == {"step": "40"}
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert [found.name for found in path.parent.iterdir()] == ["weights.safetensors"]


def test_the_same_weights_are_the_same_bytes(tmp_path):
    """The library puts metadata in another order in every call."""
    tensors = {"a": torch.arange(6.0), "b": torch.tensor([1.5], dtype=torch.float16)}
    metadata = {name: name.upper() for name in "abcdefghij"}
    contents = set()
    for number in range(5):
        path = tmp_path / f"{number}.safetensors"
        save_weights(path, tensors, metadata)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    again, read = load_weights(path)
    assert read == metadata
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_json(path, {"old": True})

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, b"", b"no weights at all"])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.safetensors cannot be read as weights"):
        load_weights(path)
