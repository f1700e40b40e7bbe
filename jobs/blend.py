"""Registered voices, with a share each, to a voice between them: one of its own, with the lineage and consent of all.

It speaks with the weights and the Prompt of the voice with the largest share (of equal ones, the first), in a timbre
between all. What a timbre means is the matter of the network that heard it, so all are heard by those weights: of the
leading voice its mean over the training clips, of the others the mean over the Prompts that their versions hold. v3 and
v4 go on from the sound of their Prompt, so there is nothing to blend. The result lies in `<workspace>/blended` as a run
would, and is registered like one. Axes: G timbre.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gsv_core.checkpoints.weights import write_atomically, write_json
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.synthesis.blending import Share, blend, normalised
from gsv_core.synthesis.timbre import save_timbre
from gsv_core.text.lexicon import FILE_NAME as LEXICON_NAME
from jobs.register import register_voice
from jobs.run_folder import HALVES
from jobs.tracking import RegisteredVersion, Registry, Tracker
from jobs.workspace import Workspace
from pipelines.rows import voice_name

if TYPE_CHECKING:
    from jobs.voice_model import Voice

EXPERIMENT = "blended"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One voice of a blend: its version, how much of it, and the consent that version was registered with."""

    share: Share
    version: RegisteredVersion
    consent: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        return {
            "voice": self.share.voice,
            "share": round(self.share.weight, 6),
            "model": self.version.name,
            "version": self.version.version,
            "consent_id": self.consent.get("id"),
        }


@dataclass(frozen=True, kw_only=True)
class BlendPlan:
    """A blend whose voices are there, the leading one first."""

    name: str
    parts: tuple[Part, ...]

    @property
    def consent(self) -> dict[str, str] | None:
        """The consents of all, each under its voice; None where one voice has none."""
        if not all(part.consent for part in self.parts):
            return None
        told = {f"{part.share.voice}.{key}": value for part in self.parts for key, value in part.consent.items()}
        return {"id": "+".join(part.consent["id"] for part in self.parts), **told}


def plan_blend(
    registry: Registry, wanted: Sequence[str], name: str, *, alias: str | None = None, require_consent: bool = False
) -> BlendPlan:
    """Find the voices of `wanted`, each `VOICE` or `VOICE:SHARE`: the version `alias` points to, or the newest.

    Raises:
        ValueError: fewer than two voices, one that is not there or is a blend itself, a name that another voice has, or
            a voice without consent where that is required.
    """
    shares = normalised([Share.parse(text) for text in wanted])
    name = voice_name(name)
    parts = []
    for share in shares:
        version = registry.version_of(share.voice, alias=alias)
        tags = registry.tags_of(version)
        if tags.get("corpus_digest") == EXPERIMENT:
            # Its Prompt is another voice's, so nothing in it shows its timbre to other weights.
            raise ValueError(f"{share.voice} is itself a blend; name the voices it was made of")
        parts.append(Part(share=share, version=version, consent=_consent_in(tags)))
    if name in registry.voices() and registry.tags_of(registry.version_of(name)).get("corpus_digest") != EXPERIMENT:
        raise ValueError(f"--name {name}: there is a voice of that name already; a blend needs one of its own")
    without = [part.share.voice for part in parts if not part.consent]
    if require_consent and without:
        raise ValueError(f"voice {without[0]!r} has no consent, and a blend needs that of each of its voices")
    return BlendPlan(name=name, parts=tuple(parts))


def blend_voices(
    plan: BlendPlan,
    workspace: Workspace,
    tracker: Tracker,
    *,
    models: str | None = None,
    require_consent: bool = False,
) -> RegisteredVersion:
    """Do what `plan` says: a run folder and a version of the voice; the same voices and shares give the same version.

    Raises:
        ValueError: the voices stand on different bases, the release cannot be blended, or the base is missing.
    """
    identity = "\n".join(
        (plan.name, *(f"{part.version.name} {part.version.version} {part.share.weight:.6f}" for part in plan.parts))
    )
    run_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
    run_dir = blend_folder(workspace, plan.name) / "runs" / run_id
    with ExitStack() as stack:
        folders = [stack.enter_context(tracker.registry.files_of(part.version)) for part in plan.parts]
        _write_run(run_dir, plan, folders, models)
    return register_voice(tracker, run_dir, consent=plan.consent, require_consent=require_consent)


def blends_of(registry: Registry, voice: str) -> list[str]:
    """The registered voices that have `voice` in any of their versions."""
    found = []
    for name in registry.voices():
        for number in registry.versions(name):
            tags = registry.tags_of(registry.version_of(name, version=number))
            parents = json.loads(tags.get("lineage.parents", "[]")) if tags.get("corpus_digest") == EXPERIMENT else []
            if any(parent["voice"] == voice for parent in parents):
                found.append(name)
                break
    return found


def blend_folder(workspace: Workspace, name: str) -> Path:
    """Where the runs of a blend lie."""
    return workspace.root / EXPERIMENT / "voices" / name


def _write_run(run_dir: Path, plan: BlendPlan, folders: Sequence[Path], models: str | None) -> None:
    """Write what a finished run of ours holds; `done.json` last."""
    from jobs.voice_model import load_voice

    leading, folder = plan.parts[0], folders[0]
    voice = load_voice(folder, models=models)
    timbre = _timbre(plan, voice, folders)
    described = voice.description
    names = {half: str(described.get(half) or half) for half in HALVES}
    for half, name in names.items():
        _copy(folder / f"{half}.safetensors", run_dir / "weights" / f"{name}.safetensors")
    for name in ("prompt.json", "prompt.safetensors"):
        _copy(folder / name, run_dir / name)
    if (folder / LEXICON_NAME).is_file():
        _copy(folder / LEXICON_NAME, run_dir.parent.parent / LEXICON_NAME)
    parents = [part.record() for part in plan.parts]
    shares = " ".join(f"{part.share.voice}:{part.share.weight:.4g}" for part in plan.parts)
    save_timbre(run_dir, timbre, {"blend": shares, "wave": names["wave"], "base_digest": described["base_digest"]})
    keys = ("release", "base_digest", "token_digest", "polyphones")
    run = {
        "schema_version": 1,
        "run_id": run_dir.name,
        "voice": plan.name,
        "language": voice.prompt.language,
        "corpus_digest": EXPERIMENT,
        "trainer_version": f"{EXPERIMENT}, weights of {leading.share.voice}",
        "speech": voice.synthesiser.base.spec.note,
        "parents": parents,
        **{key: described.get(key) for key in keys},
    }
    write_json(run_dir / "run.json", run)
    rule = f"a blend of {shares} with the weights of {leading.share.voice}, not measured"
    scores = {"schema_version": 1, "engines": {}, "pairs": [names], "best": names | {"rule": rule}}
    write_json(run_dir / "scores.json", scores)
    write_json(run_dir / "cost.json", {})
    write_atomically(run_dir / "curves.jsonl", lambda path: path.touch())
    write_json(run_dir / "done.json", {"run_id": run_dir.name})


def _timbre(plan: BlendPlan, leading: "Voice", folders: Sequence[Path]) -> Tensor:
    """(G,): the timbre between all, as the leading voice's weights hear them.

    Raises:
        ValueError: a voice stands on another base, or the release goes on from its Prompt's sound.
    """
    from jobs.voice_model import describe_voice, prompts_of

    base = leading.synthesiser.base
    if not isinstance(leading.synthesiser.acoustic, SemanticToWave):
        raise ValueError(
            f"voices of {base.release} cannot be blended: it goes on from the sound of its Prompt; v1, v2, v2Pro and "
            "v2ProPlus can"
        )
    own = leading.timbre if leading.timbre is not None else leading.synthesiser.timbre_of(leading.prompt)
    timbres = {plan.parts[0].share.voice: own}
    for part, folder in zip(plan.parts[1:], folders[1:], strict=True):
        described = describe_voice(folder)
        if (described["release"], described["base_digest"]) != (str(base.release), base.digest):
            raise ValueError(
                f"voices of one base are needed: {plan.parts[0].share.voice} is of {base.release} {base.digest[:12]}, "
                f"{part.share.voice} of {described['release']} {described['base_digest'][:12]}"
            )
        timbres[part.share.voice] = leading.synthesiser.mean_timbre(prompts_of(folder))
    return blend(timbres, [part.share for part in plan.parts])


def _consent_in(tags: Mapping[str, str]) -> dict[str, str]:
    """The consent a version is tagged with, its id under `id`; empty where there is none."""
    if "consent_id" not in tags:
        return {}
    prefix = "consent."
    told = {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}
    return {**{key: value for key, value in told.items() if key != "consent_id"}, "id": tags["consent_id"]}


def _copy(source: Path, target: Path) -> None:
    def put(temporary: Path) -> None:
        shutil.copyfile(source, temporary)

    write_atomically(target, put)
