"""Two files that GPT-SoVITS trained to a registered voice of ours.

What differs from the base, which both files must belong to, becomes the voice's weights; a recording and its transcript
become its Prompt. The result lies in `<workspace>/imported` as a run of ours would, and is registered like one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsv_core.checkpoints.base import BaseModel, load_base
from gsv_core.checkpoints.hub import file_digest
from gsv_core.checkpoints.releases import Release, release_of
from gsv_core.checkpoints.upstream import TEXT_TO_SEMANTIC_PREFIX, differing_names, read_upstream
from gsv_core.checkpoints.upstream_recognition import (
    POSTERIOR,
    FileDescription,
    Part,
    inspect_file,
    require,
)
from gsv_core.checkpoints.weights import save_weights, write_atomically, write_json
from gsv_core.networks.lora import own_names
from gsv_core.synthesis.synthesiser import Prompt
from jobs.register import register_voice
from jobs.synth import read_reference
from jobs.tracking import RegisteredVersion, Tracker
from jobs.workspace import Workspace
from pipelines.rows import voice_name

EXPERIMENT = "imported"
_TOKEN_MAKERS = ("ssl_proj.", "quantizer.")
_SECOND_PARTS = (Part.SEMANTIC_TO_WAVE, Part.SEMANTIC_TO_MEL, Part.LORA)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The recording a voice is shown by, 3 to 10 s, and what is said in it."""

    path: Path
    text: str
    language: str


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """Two files that belong together, described; nothing of them is loaded yet."""

    voice: str
    release: Release
    semantic: FileDescription
    wave: FileDescription
    reference: Reference

    def record(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "voice": self.voice,
            "release": str(self.release),
            "semantic": self.semantic.record(),
            "wave": self.wave.record(),
        }


def plan_import(
    semantic: Path, wave: Path, *, voice: str, reference: Reference, release: str | None = None
) -> ImportPlan:
    """Check that the two files are whole and belong together; `release` says which where nothing in them does.

    Raises:
        ValueError: a file is damaged, hostile, of another family or of another release than its companion, or the
            reference is not there.
    """
    second = inspect_file(wave)
    if second.part not in _SECOND_PARTS:
        raise ValueError(f"{wave}: this is {second.part} ({second.release}); {' or '.join(_SECOND_PARTS)} expected")
    if release is None and len(second.releases) != 1:
        raise ValueError(f"{wave}: nothing in it says whether it is {second.release}; name one with --base")
    found = release_of(release) if release is not None else second.releases[0]
    require(second, found, *_SECOND_PARTS)
    first = inspect_file(semantic)
    require(first, found, Part.TEXT_TO_SEMANTIC)
    if not reference.path.is_file():
        raise ValueError(f"--reference {reference.path}: there is no such file")
    return ImportPlan(voice=voice_name(voice), release=found, semantic=first, wave=second, reference=reference)


def import_voice(
    plan: ImportPlan,
    workspace: Workspace,
    tracker: Tracker,
    *,
    models: Path | None = None,
    consent: Mapping[str, Any] | None = None,
    require_consent: bool = False,
) -> RegisteredVersion:
    """Do what `plan` says: a run folder and a version of the voice; the same files give the same version.

    Raises:
        ValueError: the base is missing or another one, or the reference cannot be used.
    """
    base = load_base(plan.release, models)
    weights = {
        "semantic": changed_semantic(plan.semantic.path, base),
        "wave": changed_wave(plan.wave.path, base),
    }
    prompt = _prompt(plan.reference, base)
    digests = {"semantic": file_digest(plan.semantic.path), "wave": file_digest(plan.wave.path)}
    reference_digest = file_digest(plan.reference.path)
    identity = "\n".join(
        (plan.voice, base.digest, *digests.values(), reference_digest, plan.reference.text, plan.reference.language)
    )
    run_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
    run_dir = workspace.root / EXPERIMENT / "voices" / plan.voice / "runs" / run_id
    _write_run(run_dir, plan, base, weights, prompt, {"digests": digests, "reference_digest": reference_digest})
    version = register_voice(tracker, run_dir, consent=consent, require_consent=require_consent)
    tags = {
        "imported": "true",
        "imported.from": "GPT-SoVITS",
        **{f"imported.{half}.sha256": digest for half, digest in digests.items()},
        **{f"imported.{half}.file": getattr(plan, half).path.name for half in digests},
    }
    with tracker.store.explained(f"tag {version.uri}"):
        for name, value in tags.items():
            tracker.store.client.set_model_version_tag(version.name, str(version.version), name, value)
    return version


def changed_semantic(path: Path, base: BaseModel) -> dict[str, Tensor]:
    """The tensors of text-to-semantic at `path` that differ from the base's."""
    weights = read_upstream(path).weights
    own = {name.removeprefix(TEXT_TO_SEMANTIC_PREFIX): tensor for name, tensor in weights.items()}
    return _changed(own, base.text_to_semantic, path)


def changed_wave(path: Path, base: BaseModel) -> dict[str, Tensor]:
    """The tensors of the second network at `path` that differ from the base's, and adapters that add something.

    What GPT-SoVITS leaves out of its files, the posterior encoder, stays the base's.

    Raises:
        ValueError: the file was trained from another base, whose tokens mean something else.
    """
    weights = own_names(read_upstream(path).weights)
    factors = {name: tensor for name, tensor in weights.items() if name.endswith((".lora_A", ".lora_B"))}
    plain = {name: tensor for name, tensor in weights.items() if name not in factors}
    changed = _changed(plain, base.acoustic, path, whole=not factors)
    other = next((name for name in changed if name.startswith(_TOKEN_MAKERS)), None)
    if other is not None:
        raise ValueError(
            f"{path} was trained from another base than the {base.release} here: its tokens differ ({other}); bring in "
            "the base it was trained from"
        )
    return changed | _useful(factors, base.acoustic.state_dict(), path)


def _changed(weights: Mapping[str, Tensor], network: nn.Module, path: Path, *, whole: bool = True) -> dict[str, Tensor]:
    """Those of `weights` that are not what the base's would be in the precision of the file."""
    own = network.state_dict()
    missing = [name for name in own if name not in weights and not name.startswith(POSTERIOR)] if whole else []
    unexpected = [name for name in weights if name not in own]
    if missing or unexpected:
        raise ValueError(f"{path} does not fit the base: {differing_names(missing, unexpected)}")
    changed = {}
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{path} does not fit the base: {name} is {tuple(tensor.shape)}, {tuple(own[name].shape)} expected"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path} cannot be used: {name} holds values that are no numbers")
        if not torch.equal(tensor, own[name].to(tensor.dtype)):
            changed[name] = tensor.to(own[name].dtype)
    return changed


def _useful(factors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Adapters that fit the matrices of `own` and add something."""
    useful: dict[str, Tensor] = {}
    for name, down in factors.items():
        if not name.endswith(".lora_A"):
            continue
        stem = name.removesuffix(".lora_A")
        up, matrix = factors.get(f"{stem}.lora_B"), own.get(f"{stem}.weight")
        if up is None or matrix is None or (*up.shape[:1], *down.shape[1:]) != tuple(matrix.shape):
            raise ValueError(f"{path} does not fit the base: the adapter of {stem} belongs to no matrix there")
        if up.any():
            useful |= {name: down.float(), f"{stem}.lora_B": up.float()}
    return useful


def _prompt(reference: Reference, base: BaseModel) -> Prompt:
    return Prompt.of(base, read_reference(reference.path), reference.text, reference.language)


def _write_run(
    run_dir: Path,
    plan: ImportPlan,
    base: BaseModel,
    weights: Mapping[str, Mapping[str, Tensor]],
    prompt: Prompt,
    source: Mapping[str, Any],
) -> None:
    """Write what a finished run of ours holds; `done.json` last."""
    run_id = run_dir.name
    described = {"semantic": plan.semantic, "wave": plan.wave}
    names = {half: f"{half}-s{description.steps or 0:06d}" for half, description in described.items()}
    for half, tensors in weights.items():
        metadata = {
            "release": str(base.release),
            "base_digest": base.digest,
            "phase": half,
            "step": str(described[half].steps or 0),
            "trainer_version": "GPT-SoVITS",
        }
        save_weights(run_dir / "weights" / f"{names[half]}.safetensors", dict(tensors), metadata)
    prompt.save(run_dir)
    run = {
        "schema_version": 1,
        "run_id": run_id,
        "voice": plan.voice,
        "language": plan.reference.language,
        "release": str(base.release),
        "base_digest": base.digest,
        "token_digest": base.token_digest,
        "corpus_digest": EXPERIMENT,
        "trainer_version": "GPT-SoVITS",
        "speech": base.spec.note,
        "epochs": {half: description.epochs or 0 for half, description in described.items()},
        "imported": {
            "files": {half: description.path.name for half, description in described.items()},
            "info": {half: description.info for half, description in described.items()},
            **source,
        },
    }
    pair = {half: names[half] for half in names}
    write_json(run_dir / "run.json", run)
    write_json(
        run_dir / "scores.json",
        {"schema_version": 1, "engines": {}, "pairs": [pair], "best": pair | {"rule": "imported, not measured"}},
    )
    write_json(run_dir / "cost.json", {})
    write_atomically(run_dir / "curves.jsonl", lambda path: path.touch())
    write_json(run_dir / "done.json", {"run_id": run_id})
