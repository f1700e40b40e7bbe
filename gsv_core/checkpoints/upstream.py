"""Published and trained files of GPT-SoVITS to tensors and settings, without executing anything in them.

A file is a zip archive of tensors and a few settings, in some releases with the first two bytes replaced by digits that
name the release. It is described first (`upstream_structure`) and refused if it holds more than that; what is loaded
then is loaded `weights_only`. Of the classes a file may ask for, one is no part of torch: its settings object, which
becomes an empty class of ours.
"""

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsv_core.checkpoints.upstream_structure import (
    MOST_REUSE,
    SETTINGS_CLASS,
    ZIP_HEADER,
    Settings,
    StoredTensor,
    Structure,
    check_sums,
    checked_file,
    shown,
)

TEXT_TO_SEMANTIC_PREFIX = "model."
NAMED_AT_MOST = 3
"""Keys in one message; a file of another network would otherwise list hundreds."""

_TABLES = ("weight", "model", "state_dict", "generator")
"""Under one of these a file holds its tensors, if it is not itself the table: trained files, resume states of both
networks, BigVGAN."""
_DEEPEST_SETTINGS = 8
_MOST_SETTINGS = 10_000


class _SettingsObject:
    """Stands in for the settings object of upstream's training while torch loads."""


@dataclass(frozen=True, kw_only=True)
class UpstreamFile:
    """One file as upstream writes it: tensors under their names there, in the precision they are stored in."""

    weights: dict[str, Tensor]
    table: str | None = "weight"
    """The entry that holds them; None where they are all there is."""
    config: dict[str, Any] | None = None
    """Plain values, nested; None in files that are tensors alone."""
    config_is_object: bool = False
    """Whether they are stored as upstream's settings object or as a plain dict."""
    info: str | None = None
    lora_rank: int | None = None
    header: bytes = ZIP_HEADER
    other: dict[str, Any] = field(default_factory=dict)
    """Entries beyond those: of a resume state its epoch, rate and optimiser."""


def read_upstream(path: Path) -> UpstreamFile:
    """All of `path`, faithfully.

    Raises:
        ValueError: it cannot be read, asks for more than tensors and settings, or holds no table of tensors.
    """
    with checked_file(path) as (file, structure):
        name, stored = table_of(structure, path)
        if structure.is_archive:
            check_sums(file, path)
        try:
            with torch.serialization.safe_globals([(_SettingsObject, SETTINGS_CLASS)]):
                content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} asks for more than tensors and settings: {reason}") from error
        except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error
    table = content if name is None else content[name]
    weights = {str(key): value.detach() for key, value in table.items()}
    found = {key: (str(value.dtype).removeprefix("torch."), tuple(value.shape)) for key, value in weights.items()}
    if found != {key: (tensor.dtype, tensor.shape) for key, tensor in stored.items()}:
        raise ValueError(f"{path} is damaged: its tensors are not those that it describes")
    entries = {} if name is None else {str(key): value for key, value in content.items() if key != name}
    config = structure.content.get("config") if "config" in entries else None
    entries.pop("config", None)
    info, rank = entries.pop("info", None), entries.pop("lora_rank", None)
    return UpstreamFile(
        weights=weights,
        table=name,
        config=plain_settings(config, path),
        config_is_object=isinstance(config, Settings),
        info=info if isinstance(info, str) else None,
        lora_rank=rank if isinstance(rank, int) else None,
        header=structure.header,
        other=entries,
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of `path` in float32; of a file that is nothing but a state dict, all of it.

    Raises:
        ValueError: it cannot be read, or asks for a class that is not allowed.
    """
    weights = read_upstream(path).weights
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def table_of(structure: Structure, path: Path) -> tuple[str | None, dict[str, StoredTensor]]:
    """The table of tensors of a file and the entry it is under, None where it is the whole file.

    Raises:
        ValueError: there is none, or its tensors together are far larger than the file.
    """
    content = structure.content
    for name in (*(name for name in _TABLES if isinstance(content, dict) and name in content), None):
        table = content if name is None else content[name]
        if isinstance(table, dict) and table and all(isinstance(value, StoredTensor) for value in table.values()):
            total = sum(value.bytes for value in table.values())
            if total > MOST_REUSE * structure.file_bytes:
                raise ValueError(f"{path} unpacks to {total} bytes of tensors out of {structure.file_bytes}")
            return name, {str(key): value for key, value in table.items()}
    raise ValueError(f"{path} holds no table of tensors")


def plain_settings(config: Any, path: Path) -> dict[str, Any] | None:
    """Settings as nested dicts, lists, strings and numbers; None where a file has none.

    Raises:
        ValueError: they hold something else, refer to themselves, or are far larger than settings are.
    """
    if not isinstance(config, dict):
        return None
    left = _MOST_SETTINGS

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > _DEEPEST_SETTINGS or left < 0:
            raise ValueError(f"{path} holds settings that are far larger than any of GPT-SoVITS")
        if isinstance(value, dict):
            return {str(key): plain(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry, depth + 1) for entry in value]
        if value is None or isinstance(value, str | int | float):
            return value
        raise ValueError(f"{path} holds a {type(value).__name__} among its settings")

    made: dict[str, Any] = plain(config, 0)
    return made


def load_strictly(
    network: nn.Module, weights: Mapping[str, Tensor], path: Path, *, may_lack: Iterable[str] = ()
) -> None:
    """Fill `network` with `weights`; names below the prefixes of `may_lack` may be missing, no other, and none be left.

    Raises:
        ValueError: names or shapes differ; the message has the first few of them.
    """
    own = network.state_dict()
    prefixes = tuple(may_lack)
    missing = [name for name in own if name not in weights and not name.startswith(prefixes)]
    unexpected = [name for name in weights if name not in own]
    different = [name for name in weights if name in own and own[name].shape != weights[name].shape]
    if missing or unexpected:
        raise ValueError(f"{path} does not hold this network: {differing_names(missing, unexpected)}")
    if different:
        name = different[0]
        raise ValueError(
            f"{path} does not hold this network: {len(different)} tensors have other shapes, such as {name}: "
            f"{tuple(weights[name].shape)}, {tuple(own[name].shape)} expected"
        )
    network.load_state_dict(own | dict(weights))


def differing_names(missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """`2 missing (a, b); 1 not expected (c)`, naming the first few."""
    parts = []
    for names, what in ((sorted(missing), "missing"), (sorted(unexpected), "not expected")):
        if names:
            more = ", …" if len(names) > NAMED_AT_MOST else ""
            parts.append(f"{len(names)} {what} ({', '.join(map(shown, names[:NAMED_AT_MOST]))}{more})")
    return "; ".join(parts)
