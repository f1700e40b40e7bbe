"""Weights: what synthesis needs of a voice, as a safetensors file with string metadata.

A file appears under its name whole or not at all: it is written beside it, flushed to the disk and renamed.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary name in the folder of `path`, then flush and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    _flush(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def save_weights(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `tensors` and `metadata` (strings to strings) to `path`, atomically; the same ones give the same bytes."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(contiguous, metadata=metadata)
    write_atomically(path, lambda temporary: _write_sorted(temporary, data))


def _write_sorted(path: Path, data: bytes) -> None:
    """Write a safetensors file with its metadata in order of name: the library's order is another in every call."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(memoryview(data)[start:])


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file of `save_weights`.

    Raises:
        ValueError: the file is missing or is no safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file, not a mapping
            return tensors, dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
