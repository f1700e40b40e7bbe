"""A voice's mean timbre as a file: what it sounds like where no recording is to be followed. Axes: G timbre."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gsv_core.checkpoints.weights import load_weights, save_weights

FILE_NAME = "timbre.safetensors"
_TENSOR = "timbre"


def save_timbre(folder: Path, timbre: Tensor, metadata: Mapping[str, str]) -> Path:
    """Write (G,) into `folder` with what it was made of."""
    path = folder / FILE_NAME
    save_weights(path, {_TENSOR: timbre.float()}, {"schema_version": "1", **metadata})
    return path


def load_timbre(folder: Path) -> tuple[Tensor, dict[str, str]] | None:
    """(G,) float32 and what it was made of; None where the folder has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    tensors, metadata = load_weights(path)
    timbre = tensors.get(_TENSOR)
    if timbre is None or timbre.ndim != 1 or not bool(timbre.isfinite().all()):
        raise ValueError(f"{path} holds no timbre (G,)")
    return timbre, metadata
