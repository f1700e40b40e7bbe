"""A finished run to a version of its voice in the registry.

The version holds the weights of the chosen pair, the Prompt and gsv_core; the base stays where it is unless it is
bundled. Every run is registered and becomes the voice's `challenger`. The alias `champion` is never set here, not even
for a first version: it moves by `gsv promote` alone, through the gate.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import gsv_core
from gsv_core.checkpoints.hub import file_digest
from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.checkpoints.weights import write_json
from gsv_core.synthesis.timbre import FILE_NAME as TIMBRE_NAME
from gsv_core.text.lexicon import FILE_NAME as LEXICON_NAME
from jobs.run_folder import HALVES, RunFolder, numbers_of
from jobs.tracking import (
    CHALLENGER,
    CHAMPION,
    FILES_NAME,
    PACKAGES,
    Move,
    RegisteredVersion,
    Registry,
    Tracker,
    VoicePackage,
    installed_versions,
)
from pipelines.report.wording import HEADLINE_MEASURES

PROMPTS_FOLDER = "prompts"
_MOVES_SHOWN = 20


def register_voice(
    tracker: Tracker,
    run_dir: Path,
    *,
    consent: Mapping[str, Any] | None = None,
    require_consent: bool = False,
    base: Path | None = None,
    bundle: bool = False,
) -> RegisteredVersion:
    """The version made of the run in `run_dir`: a new one, or the one that was made of it before.

    `consent` is what `voice.yaml` says of it; all of it is tagged. With `bundle` the base's files in the models folder
    `base` go into the version. A run that is not in the tracker yet is logged first.

    Raises:
        ValueError: the run is not finished, consent is required and missing, or there is nothing to bundle.
        TrackingError: the store failed; call again.
    """
    folder = RunFolder.read(run_dir)
    # Only the card of today counts: a consent that stood when the run was trained may have been withdrawn since.
    if require_consent and not consent:
        raise ValueError(
            f"voice {folder.voice!r} has no consent; add `consent:` to its voice.yaml, or do not require it"
        )
    release = Release(folder.run["release"])
    aliases = (CHALLENGER, f"{CHALLENGER}-{release}")
    present = tracker.registry.find(folder.voice, folder.run_id)
    if present is not None:
        tracker.registry.point(present, aliases)  # an earlier call may have ended between version and alias
        return present
    run_id = tracker.find_run(folder.run_id) or tracker.log_voice(None, run_dir)
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary) / FILES_NAME
        files.mkdir()
        _collect_files(folder, files)
        if bundle:
            _collect_base(release, base, files / "base")
        version = tracker.registry.add_version(
            folder.voice,
            run_id,
            _package(files, folder),
            tags=version_tags(folder, consent),
            description=describe_version(folder, consent),
            aliases=aliases,
        )
    tracker.registry.describe(folder.voice, describe_voice(tracker.registry, folder.voice))
    return version


def describe_version(folder: RunFolder, consent: Mapping[str, Any] | None) -> str:
    """MLflow's page of a version, in Markdown: the run and its scores, on what it stands, and who consented."""
    run = folder.run
    lines = [folder.describe(), "", "**Made of**", "", "| | |", "|---|---|"]
    seconds, held_out = run.get("seconds_train"), run.get("seconds_held_out")
    if seconds is not None:
        lines.append(f"| speech | {seconds:.0f} s to train on, {held_out or 0:.0f} s held out |")
    facts = {"corpus": run["corpus_digest"], "selection": run.get("selection_digest"), "base": run["base_digest"]}
    lines += [f"| {name} | `{str(digest)[:16]}` |" for name, digest in facts.items() if digest]
    if recipe := (run.get("recipe") or {}).get("note"):
        lines.append(f"| recipe | {recipe} |")
    lines += ["", "**Consent**", "", "| | |", "|---|---|"]
    if consent:
        lines += [f"| {key} | {_in_a_cell(str(value))} |" for key, value in consent.items() if value is not None]
    else:
        lines.append("| none | nobody has said that this voice may be used |")
    return "\n".join(lines)


def describe_voice(registry: Registry, voice: str) -> str:
    """MLflow's page of the whole voice, in Markdown: what its aliases point to, its scores, and how that came to be."""
    names = [measure.name for measure in HEADLINE_MEASURES]
    lines = [f"**{voice}**", "", f"| alias | version | base | {' | '.join(names)} | consent |"]
    lines.append("|---|---:|---|---:|---:|---:|---|")
    versions = registry.versions(voice)
    of_version: dict[int, list[str]] = {}
    for alias, version in sorted(registry.aliases(voice).items(), key=lambda item: (CHAMPION not in item[0], item)):
        of_version.setdefault(version, []).append(alias)
    for version, aliases in of_version.items():
        tags = versions.get(version, {})
        scores = [measure.show(_number(tags.get(f"score.{measure.key}"))) for measure in HEADLINE_MEASURES]
        consent = _in_a_cell(tags.get("consent.by") or tags.get("consent_id", "none"))
        lines.append(
            f"| {' | '.join((', '.join(aliases), str(version), tags.get('release', '–'), *scores, consent))} |"
        )
    moves = registry.moves(voice)[-_MOVES_SHOWN:]
    if moves:
        lines += ["", "**How it came to be**", ""]
        lines += ["| when | champion | from | to | who | why |", "|---|---|---:|---:|---|---|"]
    # The aliases of a voice and of its release mostly move together: one line then.
    for (minute, before, after, who, why), together in groupby(reversed(moves), key=_what_moved):
        aliases = sorted(move.alias for move in together)
        lines.append(f"| {' | '.join((minute, ', '.join(aliases), before, after, who, why))} |")
    return "\n".join(lines)


def _what_moved(move: Move) -> tuple[str, str, str, str, str]:
    why = f"forced: {move.why}" if move.kind == "force" else move.why
    before = "–" if move.before is None else str(move.before)
    return move.when[:16].replace("T", " "), before, str(move.after), move.who, _in_a_cell(why)


def _number(tag: str | None) -> float | None:
    return None if tag is None else float(tag)


def version_tags(folder: RunFolder, consent: Mapping[str, Any] | None) -> dict[str, str]:
    """What a version is found and judged by; a consent without an id of its own is named by its digest."""
    tags = {key: str(folder.run[key]) for key in ("voice", "release", "base_digest", "corpus_digest", "run_id")}
    tags |= {name: str(folder.run[name]) for name in ("selection_digest", "trainer_version") if folder.run.get(name)}
    # What a second training of the same must come to, and what it needs to come to it.
    tags |= {f"weights.{half}": file_digest(folder.weights_path(half)) for half in HALVES}
    tags |= {name: str(value) for name in ("code_digest", "lock_digest") if (value := folder.environment.get(name))}
    tags |= {"lineage.base": f"{folder.run['release']} {folder.run['base_digest']}"}
    if parents := folder.run.get("parents"):
        tags["lineage.parents"] = json.dumps(parents, ensure_ascii=False)
    tags |= {f"score.{name}": f"{value:.6g}" for name, value in numbers_of(folder.best_pair).items()}
    tags |= {f"engine.{part}": name for part, name in folder.engines.items()}
    if folder.scores.get("independent") is not None:
        tags["likeness_independent"] = str(folder.scores["independent"]).lower()
    if folder.run.get("consent_id"):
        tags["consent_id"] = str(folder.run["consent_id"])
    if consent:
        text = json.dumps(consent, ensure_ascii=False, sort_keys=True, default=str)
        tags["consent_id"] = str(
            consent.get("consent_id") or consent.get("id") or tags.get("consent_id") or _digest(text)
        )
        tags |= {f"consent.{key}": str(value) for key, value in consent.items() if value is not None}
    return tags


def _collect_files(folder: RunFolder, target: Path) -> None:
    """Write into `target` what `voice_model.load_voice` reads."""
    from jobs.voice_model import SCHEMA_VERSION

    for half in HALVES:
        shutil.copyfile(folder.weights_path(half), target / f"{half}.safetensors")
    for name in ("prompt.json", "prompt.safetensors"):
        shutil.copyfile(folder.path / name, target / name)
    # The voice's mean timbre and its other Prompts, where there are any.
    for name in (TIMBRE_NAME, f"{PROMPTS_FOLDER}.json"):
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, target / name)
    if (folder.path / PROMPTS_FOLDER).is_dir():
        shutil.copytree(folder.path / PROMPTS_FOLDER, target / PROMPTS_FOLDER)
    # The words the voice was prepared with lie beside its runs.
    lexicon = folder.path.parent.parent / LEXICON_NAME
    if lexicon.is_file():
        shutil.copyfile(lexicon, target / LEXICON_NAME)
    keys = ("voice", "release", "base_digest", "token_digest", "run_id", "trainer_version", "polyphones")
    write_json(
        target / "voice.json",
        {
            "schema_version": SCHEMA_VERSION,
            **{key: folder.run.get(key) for key in keys},
            **{half: folder.scores["best"][half] for half in HALVES},
        },
    )


def _collect_base(release: Release, base: Path | None, target: Path) -> None:
    """Copy the files of `release` from the models folder `base`; `nano` has none."""
    for name in RELEASES[release].files:
        if base is None or not (base / name).is_file():
            raise ValueError(f"cannot bundle base {release}: {name} is not in {base}; run `gsv models pull {release}`")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / name, target / name)


def _package(files: Path, folder: RunFolder) -> VoicePackage:
    from jobs import voice_model

    versions = installed_versions(PACKAGES)
    return VoicePackage(
        model=Path(voice_model.__file__),
        files=files,
        code=Path(gsv_core.__file__).parent,
        # Without local labels such as +cpu, which no index has.
        requirements=tuple(f"{name}=={version.partition('+')[0]}" for name, version in versions.items()),
        signature=voice_model.signature(),
        example=voice_model.input_example(folder.prompt["text"], folder.prompt["language"]),
    )


def _in_a_cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
