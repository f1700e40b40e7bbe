"""A voice of ours to the two files that GPT-SoVITS would have written of it, and the recording it is to follow.

Its own weights are laid over the Base model's and written whole, in half precision; where a voice of v3 or v4 has
adapters, as those. GPT-SoVITS counts in epochs: passes over the voice's data, rounded up. The voice's Prompt becomes a
reference recording, with its text and language in a line of GPT-SoVITS's own `.list`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsv_core.audio.wav import wav_bytes
from gsv_core.checkpoints.base import BaseModel, load_base
from gsv_core.checkpoints.releases import RELEASES, Release, ReleaseSpec
from gsv_core.checkpoints.upstream import TEXT_TO_SEMANTIC_PREFIX
from gsv_core.checkpoints.upstream_recognition import LORA_TRAINS
from gsv_core.checkpoints.upstream_settings import second_settings, semantic_settings, why_upstream_cannot_build
from gsv_core.checkpoints.upstream_writing import (
    second_file,
    second_name,
    semantic_file,
    semantic_name,
    write_upstream,
)
from gsv_core.checkpoints.weights import load_weights, write_atomically
from gsv_core.features import RATE_HZ
from gsv_core.networks.lora import FLOW_TARGETS, WRAPPED, fold_factors, upstream_names
from gsv_core.synthesis.synthesiser import Prompt
from jobs.run_folder import HALVES, RunFolder
from jobs.tracking import Registry

_BATCH_SIZES = {"semantic": 8, "wave": 4}
"""Written into the settings where nothing says which was used; nothing reads them."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One half of a voice as it was trained: tensors that differ from the base's, and how long it took."""

    tensors: Mapping[str, Tensor]
    steps: int
    epochs: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written. `note` is what must be said beside it."""

    voice: str
    release: Release
    files: tuple[Path, Path]
    lora_rank: int | None
    note: str | None = None
    reference: tuple[Path, Path] | None = None
    """The recording to follow, and the `.list` that says what is said in it."""


def export_version(
    tracker_uri: str,
    voice: str,
    out: Path,
    *,
    version: int | None = None,
    alias: str | None = None,
    models: Path | None = None,
    prefix: str = "gsv-",
) -> Exported:
    """Export a registered version: the given one, the one an alias points to, or the newest.

    Raises:
        ValueError: no such voice, version or alias, a missing base, or sizes that GPT-SoVITS cannot build.
    """
    registry = Registry(tracker_uri, prefix=prefix)
    found = registry.version_of(voice, version=version, alias=alias)
    with registry.store.explained(f"look for the run of {voice}"):
        params = registry.store.client.get_run(found.run_id).data.params
    with registry.files_of(found) as folder:
        description = json.loads((folder / "voice.json").read_text(encoding="utf-8"))
        models = folder / "base" if (folder / "base").is_dir() else models
        paths = {half: folder / f"{half}.safetensors" for half in HALVES}
        return _export(voice, description, paths, params, out, models, Prompt.load(folder))


def export_run(run_dir: Path, out: Path, *, models: Path | None = None) -> Exported:
    """Export the chosen pair of a finished run.

    Raises:
        ValueError: the run is not finished, a missing base, or sizes that GPT-SoVITS cannot build.
    """
    folder = RunFolder.read(run_dir)
    paths = {half: folder.weights_path(half) for half in HALVES}
    return _export(folder.voice, folder.run, paths, folder.run, out, models, Prompt.load(run_dir))


def _export(
    voice: str,
    description: Mapping[str, Any],
    paths: Mapping[str, Path],
    record: Mapping[str, Any],
    out: Path,
    models: Path | None,
    prompt: Prompt,
) -> Exported:
    release = Release(description["release"])
    check_buildable(RELEASES[release])
    base = load_base(release, models)
    check_buildable(as_built(base))
    if base.digest != description["base_digest"]:
        raise ValueError(
            f"voice {voice!r} was trained on base {release} {description['base_digest'][:16]}…, but the one found here "
            f"has {base.digest[:16]}…; use the files it was trained on"
        )
    halves = {half: _trained(path, half, record) for half, path in paths.items()}
    exported = write_pair(voice, base, halves["semantic"], halves["wave"], out)
    return replace(exported, reference=write_reference(voice, prompt, out))


def write_reference(voice: str, prompt: Prompt, out: Path) -> tuple[Path, Path]:
    """`<voice>_reference.wav`, 32 kHz and 16 bit, and `<voice>_reference.list`: file|voice|language|text."""
    recording, line = out / f"{voice}_reference.wav", out / f"{voice}_reference.list"
    data = wav_bytes(prompt.wave.numpy(), RATE_HZ)
    text = f"{recording.name}|{voice}|{prompt.language}|{' '.join(prompt.text.split())}\n".encode()
    write_atomically(recording, lambda path: _write_bytes(path, data))
    write_atomically(line, lambda path: _write_bytes(path, text))
    return recording, line


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def check_buildable(spec: ReleaseSpec) -> None:
    """Raise ValueError, with the reason, where GPT-SoVITS cannot build the networks of `spec`."""
    reason = why_upstream_cannot_build(spec)
    if reason is not None:
        raise ValueError(f"GPT-SoVITS cannot speak with a voice of {spec.release}: {reason}; train on a published base")


def as_built(base: BaseModel) -> ReleaseSpec:
    """The release of `base` with the sizes that its networks really have."""
    to_wave, to_mel = base.semantic_to_wave, base.semantic_to_mel
    return replace(
        base.spec,
        text_to_semantic=base.text_to_semantic.config,
        semantic_to_wave=None if to_wave is None else to_wave.config,
        semantic_to_mel=None if to_mel is None else to_mel.config,
    )


def write_pair(voice: str, base: BaseModel, semantic: Trained, wave: Trained, out: Path) -> Exported:
    """Write both files of a voice into the folder `out`."""
    spec = as_built(base)
    first = {
        f"{TEXT_TO_SEMANTIC_PREFIX}{name}": tensor
        for name, tensor in merged(base.text_to_semantic, semantic.tensors).items()
    }
    ranks = {len(tensor) for name, tensor in wave.tensors.items() if name.endswith(".lora_A")}
    if len(ranks) > 1:
        raise ValueError(f"voice {voice!r} has adapters of ranks {sorted(ranks)}; GPT-SoVITS takes one rank")
    rank = next(iter(ranks), None)
    if spec.release is Release.V4 and rank is None:
        rank = 1  # a whole file of v4 would be taken for v3; adapters that add nothing say the same
    second = merged(base.acoustic, wave.tensors) if rank is None else adapted(base.acoustic, wave.tensors, rank)
    files = (
        out / semantic_name(voice, epochs=semantic.epochs),
        out / second_name(voice, epochs=wave.epochs, steps=wave.steps, lora_rank=rank),
    )
    settings = semantic_settings(spec.text_to_semantic, voice, epochs=semantic.epochs, batch_size=semantic.batch_size)
    write_upstream(files[0], semantic_file(first, settings, epochs=semantic.epochs))
    settings = second_settings(spec, voice, epochs=wave.epochs, batch_size=wave.batch_size, lora_rank=rank)
    write_upstream(
        files[1],
        second_file(second, settings, spec.release, epochs=wave.epochs, steps=wave.steps, lora_rank=rank),
    )
    return Exported(voice=voice, release=spec.release, files=files, lora_rank=rank, note=spec.note)


def merged(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of `network` with a voice's in their place, adapters added to the matrices they belong to.

    Raises:
        ValueError: a tensor does not fit.
    """
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    changed = fold_factors(tensors, state)
    for name, tensor in changed.items():
        if name not in state or state[name].shape != tensor.shape:
            expected = tuple(state[name].shape) if name in state else "no such tensor"
            raise ValueError(f"weights do not fit the base: {name} is {tuple(tensor.shape)}, expected {expected}")
    return state | changed


def adapted(network: nn.Module, tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """What upstream saves of a voice with adapters, under its names; matrices without one get one that adds nothing.

    Raises:
        ValueError: the voice changes what upstream's LoRA files do not hold.
    """
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    buffers = {name for name, _ in network.named_buffers()}
    kept = {
        name: tensors.get(name, tensor)
        for name, tensor in state.items()
        if name in buffers or name.startswith(LORA_TRAINS)
    }
    matrices = [
        name.removesuffix(".weight")
        for name, tensor in state.items()
        if tensor.ndim == 2 and name.startswith(f"{WRAPPED}.") and name.removesuffix(".weight").endswith(FLOW_TARGETS)
    ]
    factors: dict[str, Tensor] = {}
    for matrix in matrices:
        outputs, inputs = state[f"{matrix}.weight"].shape
        factors[f"{matrix}.lora_A"] = tensors.get(f"{matrix}.lora_A", torch.zeros(rank, inputs))
        factors[f"{matrix}.lora_B"] = tensors.get(f"{matrix}.lora_B", torch.zeros(outputs, rank))
    elsewhere = sorted(tensors.keys() - kept.keys() - factors.keys())
    if elsewhere:
        raise ValueError(
            f"GPT-SoVITS's LoRA files hold adapters and the condition side; this voice also changes {elsewhere[0]} "
            f"({len(elsewhere)} such tensors): train it with LoRA"
        )
    return upstream_names(kept | factors)


def _trained(path: Path, half: str, record: Mapping[str, Any]) -> Trained:
    """The weights at `path` and, from what is recorded of their run, how many passes they took."""
    tensors, metadata = load_weights(path)
    steps = int(metadata.get("step", 0))
    batch_size = int(_entry(record, f"recipe.{half}.batch_size") or _BATCH_SIZES[half])
    utterances = int(_entry(record, "utterances_train") or 0)
    said = _entry(record, f"epochs.{half}")
    passes = -(-steps * batch_size // utterances) if utterances else int(steps > 0)
    return Trained(
        tensors=tensors, steps=steps, epochs=int(said) if said is not None else passes, batch_size=batch_size
    )


def _entry(record: Mapping[str, Any], name: str) -> Any:
    """`a.b.c` of nested mappings, or of one whose keys are already joined, as MLflow keeps them."""
    if name in record:
        return record[name]
    first, _, rest = name.partition(".")
    inner = record.get(first)
    return _entry(inner, rest) if rest and isinstance(inner, Mapping) else None
