"""Checkpoint files in upstream's formats, as read and written here, against what was recorded of them.

`ckpt_facts.json` in the folder describes each file beside it: its first bytes, entries, names with shapes, types, what
its pickle asks for, settings and information. Every file must also come back the same after a round trip through ours.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gsv_core.checkpoints.upstream import UpstreamFile, read_upstream
from gsv_core.checkpoints.upstream_recognition import inspect_file
from gsv_core.checkpoints.upstream_structure import SETTINGS_CLASS, checked_file
from gsv_core.checkpoints.upstream_writing import write_upstream
from gsv_core.checkpoints.weights import load_weights, save_weights
from gsv_core.networks.lora import own_names, upstream_names
from tests.parity.recorded import Comparison

FACTS_NAME = "ckpt_facts.json"


def checkpoint_files(folder: Path) -> Iterator[tuple[str, list[Comparison]]]:
    """Every file described in `<folder>/ckpt`, and every one that lies there undescribed."""
    place = folder / "ckpt"
    if not place.is_dir():
        return
    facts: Mapping[str, Mapping[str, Any]] = json.loads((place / FACTS_NAME).read_text("utf-8"))
    described = {name for name in facts if not name.startswith("_")}
    present = {path.name for path in place.iterdir() if path.is_file()} - {FACTS_NAME}
    for name in sorted(described | present):
        if name not in described or name not in present:
            missing = "nothing recorded of it" if name in present else "the file is missing"
            yield name, [_verdict("described and present", agrees=False, note=missing)]
            continue
        try:
            yield name, list(_compare(place / name, facts[name]))
        except ValueError as error:
            yield name, [_verdict("read", agrees=False, note=str(error))]


def _compare(path: Path, facts: Mapping[str, Any]) -> Iterator[Comparison]:
    file = read_upstream(path)
    with checked_file(path) as (_, structure):
        names, entries = structure.names, list(structure.content)
    foreign = sorted(name for name in names if name == SETTINGS_CLASS)
    shapes = {name: list(tensor.shape) for name, tensor in file.weights.items()}
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in file.weights.values()})
    yield _equal("header", file.header.decode("latin-1"), facts["header_bytes_ascii"])
    others = {
        "bytes": path.stat().st_size,
        "header_hex": path.read_bytes()[:4].hex(),
        "n_weight_keys": len(file.weights),
        "globals_to_allow_for_weights_only": foreign,
        "loads_with_weights_only_true": not foreign,
    }
    for name, ours in others.items():
        if name in facts:
            yield _equal(name, ours, facts[name])
    yield _equal("entries", entries, facts["top_level_keys"])
    yield _equal("names and shapes", shapes, facts["weight_keys"])
    yield _equal("types", types, sorted(facts["dtypes"]))
    yield _equal("names the pickle asks for", sorted(names), sorted(facts["pickle_globals"]))
    kinds = {None: None, "builtins.dict": False, "utils.HParams": True}
    is_object = None if file.config is None else file.config_is_object
    yield _equal("kind of settings", is_object, kinds[facts["config_type"]])
    yield _equal("settings", file.config, facts["config_plain"])
    yield _equal("information", file.info, facts["info"])
    yield _equal("LoRA rank", file.lora_rank, facts["other"].get("lora_rank"))
    # Of what is neither number nor text the kind alone is recorded.
    found = {
        name: value if isinstance(value, int | float | str) else type(value).__name__
        for name, value in file.other.items()
    }
    said = {name: value for name, value in facts["other"].items() if name != "lora_rank"}
    yield _equal("other entries", found, said)
    yield _verdict("described", agrees=not inspect_file(path).problems, note="; ".join(inspect_file(path).problems))
    yield from _round_trip(file)


def _round_trip(file: UpstreamFile) -> Iterator[Comparison]:
    """Upstream's file → our safetensors under our names → upstream's file."""
    with tempfile.TemporaryDirectory() as temporary:
        ours, theirs = Path(temporary) / "ours.safetensors", Path(temporary) / "theirs.pth"
        own = own_names(file.weights)
        save_weights(ours, own, {})
        stored, _ = load_weights(ours)
        loaded = {name: stored[name] for name in own}
        # Only a network with adapters is wrapped, and its names with it.
        write_upstream(theirs, replace(file, weights=upstream_names(loaded) if file.lora_rank else loaded))
        back = read_upstream(theirs)
    different = [
        name
        for name, tensor in file.weights.items()
        if name not in back.weights
        or back.weights[name].dtype != tensor.dtype
        or not torch.equal(back.weights[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))
    ]
    yield _equal("round trip: names in order", list(back.weights), list(file.weights))
    yield Comparison("round trip: tensors bit for bit", float(len(different)), 0.0, note=", ".join(different[:3]))
    for part in ("header", "config", "config_is_object", "info", "lora_rank"):
        yield _equal(f"round trip: {part}", getattr(back, part), getattr(file, part))


def _equal(name: str, ours: Any, recorded: Any) -> Comparison:
    agrees = ours == recorded
    return _verdict(name, agrees=agrees, note="" if agrees else f"{str(ours)[:100]}, recorded {str(recorded)[:100]}")


def _verdict(name: str, *, agrees: bool, note: str = "") -> Comparison:
    if agrees:
        return Comparison(name, 0.0, 0.0)
    return Comparison(name, float("inf"), 0.0, relative=float("inf"), note=note)
