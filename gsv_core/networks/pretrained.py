"""A folder of published encoder weights: what it holds, and whether all of it was used."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PARTS = ("config.json", "tokenizer.json", "vocab.txt")


def weights_file(folder: Path) -> Path:
    """The weights in `folder`.

    Raises:
        ValueError: there is no config or no weights file.
    """
    weights = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not weights or not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: need config.json and {' or '.join(_WEIGHTS)}; `gsv models pull` fetches them")
    return weights[0]


def folder_digest(folder: Path) -> str:
    """SHA-256 over the config, the vocabulary and the weights in `folder`: 64 hex digits.

    Raises:
        ValueError: there is no config or no weights file.
    """
    weights = weights_file(folder)
    digest = hashlib.sha256()
    for path in (*(folder / name for name in _PARTS if (folder / name).is_file()), weights):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_complete(folder: Path, loading: Mapping[str, list[str]], *, unused: tuple[str, ...] = ()) -> None:
    """Refuse weights that leave a part of the network at its random start.

    `loading` is the report of `from_pretrained(..., output_loading_info=True)`; parameters named in `unused` play no
    part in what we compute.
    """
    missing = sorted(key for key in loading["missing_keys"] if not key.endswith(unused or ("\0",)))
    if missing or loading["mismatched_keys"]:
        raise ValueError(f"{folder}: {len(missing)} weights are missing or misshapen, such as {missing[:1]}")
