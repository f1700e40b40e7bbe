"""Published files of GPT-SoVITS to tensors, without executing anything in them.

A file is a zip archive of tensors and a few settings, in some releases with the first two bytes replaced by digits that
name the release. Loading is `weights_only`; of the classes a file may ask for, one is known: its settings object, which
becomes an empty class of ours.
"""

import io
import pickle
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

TEXT_TO_SEMANTIC_PREFIX = "model."
_ZIP_MAGIC = b"PK"
_KNOWN_HEADERS = frozenset({b"00", b"01", b"02", b"03", b"04", b"05", b"06"})


class _Settings:
    """Stands in for the settings object of upstream's training, of which nothing is used."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of `path` in float32; of a file that is nothing but a state dict, all of it.

    Raises:
        ValueError: it cannot be read, or asks for a class that is not allowed.
    """
    try:
        with path.open("rb") as file, torch.serialization.safe_globals([(_Settings, "utils.HParams")]):
            content = torch.load(_with_zip_magic(file, path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} asks for more than tensors and settings, so it is not loaded: {reason}") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    weights = content.get("weight", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds no table of tensors")
    return {str(name): tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def _with_zip_magic(file: IO[bytes], path: Path) -> IO[bytes]:
    header = file.read(2)
    file.seek(0)
    if header not in _KNOWN_HEADERS:
        return file
    return io.BytesIO(_ZIP_MAGIC + path.read_bytes()[2:])
