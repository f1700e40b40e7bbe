"""Tensors and settings to files that GPT-SoVITS reads as its own.

Its settings are an object of a class in its module `utils`. No such module exists here, so the class is written by its
name alone. The same content gives the same bytes (under one version of torch).
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gsv_core.checkpoints.releases import Release
from gsv_core.checkpoints.upstream import UpstreamFile
from gsv_core.checkpoints.upstream_structure import SETTINGS_CLASS, ZIP_HEADER
from gsv_core.checkpoints.weights import write_atomically

LEFT_OUT = "enc_q"
"""Tensors with this in their names are needed in training alone; upstream leaves them out of what it trained."""

_LORA_HEADERS: Mapping[Release, bytes] = {Release.V3: b"03", Release.V4: b"04"}
_HEADERS: Mapping[Release, bytes] = {Release.V2_PRO: b"05", Release.V2_PRO_PLUS: b"06"}


def semantic_file(weights: Mapping[str, Tensor], config: Mapping[str, Any], *, epochs: int) -> UpstreamFile:
    """The file of text-to-semantic, of tensors under their names in it (with the prefix)."""
    return UpstreamFile(
        weights={name: tensor.half() for name, tensor in weights.items()},
        config=dict(config),
        info=f"GPT-e{epochs}",
    )


def second_file(
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    release: Release,
    *,
    epochs: int,
    steps: int,
    lora_rank: int | None = None,
) -> UpstreamFile:
    """The file of semantic-to-wave or semantic-to-mel.

    Raises:
        ValueError: GPT-SoVITS would take a file of this release for one of another.
    """
    header = _LORA_HEADERS.get(release) if lora_rank else _HEADERS.get(release, ZIP_HEADER)
    if header is None:
        raise ValueError(f"GPT-SoVITS knows LoRA files of v3 and v4 only, not of {release}")
    if release is Release.V4 and not lora_rank:
        raise ValueError("GPT-SoVITS takes whole files of semantic-to-mel for v3; a voice of v4 needs a LoRA file")
    return UpstreamFile(
        weights={name: tensor.half() for name, tensor in weights.items() if LEFT_OUT not in name},
        config=dict(config),
        config_is_object=True,
        info=f"{epochs}epoch_{steps}iteration",
        lora_rank=lora_rank,
        header=header,
    )


def semantic_name(voice: str, *, epochs: int) -> str:
    """What upstream calls the file of text-to-semantic."""
    return f"{voice}-e{epochs}.ckpt"


def second_name(voice: str, *, epochs: int, steps: int, lora_rank: int | None = None) -> str:
    """What upstream calls the other file."""
    return f"{voice}_e{epochs}_s{steps}{f'_l{lora_rank}' if lora_rank else ''}.pth"


def write_upstream(path: Path, file: UpstreamFile) -> None:
    """Write `file` to `path`, whole or not at all; tensors keep the precision they have."""
    content: OrderedDict[str, Any] = OrderedDict()
    # A view would drag along all that it is a view of.
    table = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in file.weights.items()}
    content.update(table if file.table is None else {file.table: table})
    if file.config is not None:
        content["config"] = _settings(file.config) if file.config_is_object else dict(file.config)
    if file.info is not None:
        content["info"] = file.info
    if file.lora_rank is not None:
        content["lora_rank"] = file.lora_rank
    content.update(file.other)
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_module=_NAMING)
    data = buffer.getbuffer()
    data[: len(ZIP_HEADER)] = file.header
    write_atomically(path, lambda temporary: _write(temporary, data))


class _Settings:
    """Stands in for upstream's settings class, whose name it is written by."""


def _settings(config: Mapping[str, Any]) -> _Settings:
    settings = _Settings()
    for name, value in config.items():
        setattr(settings, name, _settings(value) if isinstance(value, Mapping) else value)
    return settings


class _NamingPickler(pickle._Pickler):
    """Writes `_Settings` by upstream's name, which the pickler in C would look for and not find."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is not _Settings:
            super().save_global(obj, name)  # type: ignore[misc]  # the stubs leave it out
            return
        self.write(pickle.GLOBAL + SETTINGS_CLASS.replace(".", "\n").encode() + b"\n")  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]


_NAMING = ModuleType("settings_by_name")
_NAMING.Pickler = _NamingPickler  # type: ignore[attr-defined]  # what torch looks up in a module to pickle with


def _write(path: Path, data: memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
