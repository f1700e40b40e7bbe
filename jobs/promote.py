"""Promote: a registered version to the champion of its voice, through the gate; rollback: the champion before again.

There is a champion per release (`champion-v2Pro`) and one of all (`champion`). The gate asks three things. Consent, if
the policy requires it. That the version loads and speaks in a process of its own. And that it is not worse than the
champion on sentences that both have spoken: for every measure with a bound, the mean of the paired differences is, as
far as a bootstrap over the sentences can be sure (Efron 1979), worse by no more than the bound. `--force` overrules the
last of the three only, with a reason; every move is kept in the registry.
"""

import getpass
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gsv_core.checkpoints.hub import file_digest
from gsv_core.checkpoints.releases import Release
from gsv_core.features import RATE_HZ
from gsv_core.metrics.confidence import bootstrap_interval
from gsv_core.synthesis.synthesiser import Prompt
from jobs.config import GateConfig, JobConfig
from jobs.register import describe_voice
from jobs.run_folder import HALVES
from jobs.tracking import CHALLENGER, CHAMPION, Move, RegisteredVersion, Registry, without_password
from jobs.tracking import __file__ as tracking_file
from jobs.workspace import Workspace

HIGHER_IS_BETTER = {"character_error_rate": False, "likeness": True, "quality": True}
"""Measures that the gate can have a bound on."""
_LEAST_LEVEL = 10 ** (-60 / 20)
"""Quieter than -60 dB is silence."""
_LEAST_S = 0.1

Numbers = Mapping[str, float]
Spoken = Mapping[tuple[str, str], Numbers]
"""(name, text) of a sentence → its numbers."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measure over the sentences that both versions spoke. Differences count towards worse."""

    measure: str
    candidate: float
    champion: float
    sentences: int
    worse_by: float
    worse_by_at_most: float
    """At the confidence of the gate."""
    allowed: float

    @property
    def passed(self) -> bool:
        return self.worse_by_at_most <= self.allowed

    def __str__(self) -> str:
        return (
            f"{self.measure.replace('_', ' ')} {self.candidate:.3f} against {self.champion:.3f} on {self.sentences} "
            f"sentences: {_by(self.worse_by)}, at worst {_by(self.worse_by_at_most)}; allowed is {_by(self.allowed)}"
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate said of one version, and what then moved."""

    voice: str
    version: int
    release: str
    before: dict[str, int | None]
    """Alias → the version it pointed to."""
    moved: tuple[str, ...] = ()
    """Aliases that point to the version now and did not before."""
    comparisons: tuple[Comparison, ...] = ()
    refusals: tuple[str, ...] = ()
    kept: str = ""
    """Why the champion of all releases stays, where only that of its own moved."""
    forced: bool = False
    trial: dict[str, Any] | None = None

    @property
    def is_champion(self) -> bool:
        """Whether the version is the champion of its release now."""
        return not self.refusals or self.forced

    def record(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {**asdict(self), "is_champion": self.is_champion}


@dataclass(frozen=True, kw_only=True)
class _Judged:
    comparisons: tuple[Comparison, ...]
    refusals: tuple[str, ...]


def promote(
    registry: Registry,
    voice: str,
    config: JobConfig,
    *,
    version: int | None = None,
    reason: str | None = None,
    consent: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Verdict:
    """Make a version (the challenger where none is given) champion, if it passes the gate.

    A `reason` overrules the comparison. `consent` is what the voice's card says today; the version's own tags count
    where there is no card. With `dry_run` nothing moves.

    Raises:
        ValueError: no such voice or version.
        TrackingError: the store failed.
    """
    candidate = _candidate(registry, voice, version)
    tags = registry.tags_of(candidate)
    aliases = registry.aliases(voice)
    wanted = (f"{CHAMPION}-{tags['release']}", CHAMPION)
    before = {alias: aliases.get(alias) for alias in wanted}
    verdict = Verdict(voice=voice, version=candidate.version, release=tags["release"], before=before)
    if all(present == candidate.version for present in before.values()):
        return verdict
    barred = _why_no_consent(voice, tags, consent, config)
    if barred is None:
        verdict, barred = _tried(registry, candidate, tags, verdict, config)
    if barred is not None:
        return replace(verdict, refusals=(barred,))
    own, overall = wanted
    judged = _judge(registry, voice, candidate, before[own], config)
    forced = reason is not None and bool(judged.refusals)
    verdict = replace(verdict, comparisons=judged.comparisons, refusals=judged.refusals, forced=forced)
    if judged.refusals and reason is None:
        return verdict
    moves = [own]
    if before[overall] == before[own] or reason is not None:
        moves.append(overall)
    else:
        of_all = _judge(registry, voice, candidate, before[overall], config)
        if of_all.refusals:
            verdict = replace(verdict, kept="; ".join(of_all.refusals))
        else:
            moves.append(overall)
    moves = [alias for alias in moves if before[alias] != candidate.version]
    verdict = replace(verdict, moved=tuple(moves))
    if not dry_run:
        _move(registry, candidate, verdict, reason)
    return verdict


def consent_of(workspace: Workspace, voice: str) -> Mapping[str, Any] | None:
    """What the voice's card in this workspace's corpus says of consent, nothing included; None without a card."""
    path = f"voices/{voice}/voice.json"
    if Path(voice).name != voice or not workspace.storage.exists(path):
        return None
    return json.loads(workspace.storage.read(path)).get("consent") or {}


def rollback(registry: Registry, voice: str, *, release: str | None = None, reason: str = "") -> list[Move]:
    """Let `champion` (or the one of a `release`) point to the version it pointed to before; the moves made.

    The champion of the release goes back with that of all where both are the same version.

    Raises:
        ValueError: no such voice, or nothing to go back to.
    """
    registry.version_of(voice)
    aliases = registry.aliases(voice)
    alias = f"{CHAMPION}-{release}" if release else CHAMPION
    if alias not in aliases:
        known = ", ".join(sorted(name for name in aliases if name.startswith(CHAMPION))) or "none"
        raise ValueError(f"voice {voice!r} has no {alias}; champions: {known}")
    history = registry.moves(voice)
    versions = registry.versions(voice)
    target = version_before(alias, aliases[alias], history, versions)
    if target is None:
        raise ValueError(f"voice {voice!r}: {alias} is version {aliases[alias]}, and there was none before it")
    targets = {alias: target}
    if release is None:
        own = f"{CHAMPION}-{registry.tags_of(registry.version_of(voice, version=aliases[alias]))['release']}"
        if aliases.get(own) == aliases[alias]:
            earlier = version_before(own, aliases[own], history, versions)
            if earlier is not None:
                targets[own] = earlier
    moves = [_new_move(name, aliases[name], after, reason, "rollback") for name, after in targets.items()]
    for move in moves:
        registry.move(voice, move)
    registry.describe(voice, describe_voice(registry, voice))
    return moves


def version_before(alias: str, now: int, history: Sequence[Move], versions: Collection[int]) -> int | None:
    """The champion before `now`: promotions are stacked, a rollback takes the top away. Deleted versions are passed."""
    stack: list[int] = []
    for move in history:
        if move.alias != alias:
            continue
        if move.kind == "rollback":
            while stack and stack[-1] != move.after:
                stack.pop()
        elif move.before is not None and (not stack or stack[-1] != move.before):
            stack.append(move.before)  # it had been moved by hand
        if not stack or stack[-1] != move.after:
            stack.append(move.after)
    if not stack or stack[-1] != now:
        stack.append(now)
    return next((version for version in reversed(stack[:-1]) if version in versions and version != now), None)


def compare(candidate: Spoken, champion: Spoken, gate: GateConfig, measures: Sequence[str]) -> list[Comparison]:
    """Every measure that has a bound, over the sentences for which both versions have it."""
    comparisons = []
    for measure in measures:
        allowed = getattr(gate, measure)
        pairs = [
            (candidate[key][measure], champion[key][measure])
            for key in sorted(candidate.keys() & champion.keys())
            if measure in candidate[key] and measure in champion[key]
        ]
        if allowed is None or len(pairs) < gate.fewest_sentences:
            continue
        sign = -1.0 if HIGHER_IS_BETTER[measure] else 1.0
        worse = [sign * (new - old) for new, old in pairs]
        # Of an interval of 90 % the upper end is what 95 % of the means stay below.
        interval = bootstrap_interval(worse, seed=0, level=2 * gate.confidence - 1)
        assert interval is not None
        comparisons.append(
            Comparison(
                measure=measure,
                candidate=statistics.fmean(new for new, _ in pairs),
                champion=statistics.fmean(old for _, old in pairs),
                sentences=len(pairs),
                worse_by=statistics.fmean(worse),
                worse_by_at_most=interval[1],
                allowed=allowed,
            )
        )
    return comparisons


def spoken_of(scores: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """What the chosen pair said, by `scores.json`, alone or like the others; held-out texts go by their clip."""
    best = scores["best"]
    pairs = (pair for pair in scores["pairs"] if all(pair[half] == best[half] for half in HALVES))
    pair: dict[str, Any] = next(pairs, {})
    said = [*(pair.get("utterances") or []), *(scores.get("common") or [])]
    return {
        (str(entry.get("name") or entry.get("clip_id")), str(entry["text"])): {
            measure: float(value)
            for measure in HIGHER_IS_BETTER
            if (value := entry.get("numbers", entry).get(measure)) is not None
        }
        for entry in said
    }


def speaks_alone(registry: Registry, version: RegisteredVersion, *, models: str | None, timeout_s: float) -> Any:
    """What a fresh process makes of a version: its numbers, or in a line why it cannot be used."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry.store.uri, "MLFLOW_REGISTRY_URI": registry.store.uri}
    if models is not None:
        environment["GSV_MODELS"] = str(Path(models).resolve())
    program = Path(tracking_file).with_name("trial.py")
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                # -P: the program's own folder must not come before the version's code.
                [sys.executable, "-P", str(program), version.uri],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it did not speak within {timeout_s:g} s"
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [f"exit code {done.returncode}"]
        return f"it does not load and speak in a process of its own: {last[0].strip()}".replace(
            registry.store.uri, without_password(registry.store.uri)
        )
    trial = json.loads(done.stdout.splitlines()[-1])
    if trial["seconds"] < _LEAST_S or not trial["level"] >= _LEAST_LEVEL:
        return f"it is silent: {trial['seconds']:.2f} s with a level of {trial['level']:.2g}"
    return trial


def _candidate(registry: Registry, voice: str, version: int | None) -> RegisteredVersion:
    newest = registry.version_of(voice, version=version)
    if version is None and CHALLENGER in registry.aliases(voice):
        return registry.version_of(voice, alias=CHALLENGER)
    return newest


def _why_no_consent(
    voice: str, tags: Mapping[str, str], consent: Mapping[str, Any] | None, config: JobConfig
) -> str | None:
    """A line that says so, where consent is required and there is none today."""
    if not config.registry.require_consent or consent or (consent is None and "consent_id" in tags):
        return None
    return f"voice {voice!r} has no consent, and registry.require_consent asks for one"


def _tried(
    registry: Registry, candidate: RegisteredVersion, tags: Mapping[str, str], verdict: Verdict, config: JobConfig
) -> tuple[Verdict, str | None]:
    """Whether the version's files are whole, and it speaks; the refusal where not."""
    with registry.files_of(candidate) as folder:
        for half in HALVES:
            expected, path = tags.get(f"weights.{half}"), folder / f"{half}.safetensors"
            if not path.is_file() or (expected is not None and file_digest(path) != expected):
                return verdict, f"its {path.name} is {'damaged' if path.is_file() else 'missing'} in the registry"
    trial = speaks_alone(registry, candidate, models=config.flow.base_folder, timeout_s=config.registry.gate.timeout_s)
    return (verdict, trial) if isinstance(trial, str) else (replace(verdict, trial=trial), None)


def _judge(
    registry: Registry, voice: str, candidate: RegisteredVersion, champion: int | None, config: JobConfig
) -> _Judged:
    """The candidate beside a champion; anything is good enough where there is none."""
    from jobs.scoring import ENGINE_OF

    if champion is None or champion == candidate.version:
        return _Judged(comparisons=(), refusals=())
    present = registry.version_of(voice, version=champion)
    gate = config.registry.gate
    wanted = [measure for measure in HIGHER_IS_BETTER if getattr(gate, measure) is not None]
    scores = [registry.run_file(version, "scores.json") or {} for version in (candidate, present)]
    comparisons: list[Comparison] = []
    if all(scores):
        # Numbers of two engines say nothing about each other.
        engines = [record.get("engines") or {} for record in scores]
        same = [measure for measure in wanted if len({record.get(ENGINE_OF[measure]) for record in engines}) == 1]
        comparisons = compare(spoken_of(scores[0]), spoken_of(scores[1]), gate, same)
    if not comparisons and wanted:
        comparisons = _compare_anew(registry, candidate, present, config, wanted)
    if not comparisons and wanted:
        return _Judged(
            comparisons=(),
            refusals=(
                f"it cannot be compared with version {champion}: they have fewer than {gate.fewest_sentences} "
                "sentences in common that an engine here can judge; evaluate both on the same sentences",
            ),
        )
    refusals = tuple(f"worse than version {champion}: {found}" for found in comparisons if not found.passed)
    return _Judged(comparisons=tuple(comparisons), refusals=refusals)


def _compare_anew(
    registry: Registry,
    candidate: RegisteredVersion,
    champion: RegisteredVersion,
    config: JobConfig,
    measures: Sequence[str],
) -> list[Comparison]:
    """Let both versions say the fixed sentences of the voice's language, and measure them with the engines here."""
    from jobs.scoring import Models, fixed_sentences, likeness_engine, load_models, score_version

    flow = config.flow
    likeness = likeness_engine(flow.engines, config.evaluation.likeness)
    spoken: list[Spoken] = []
    loaded: dict[Release, Models] = {}
    with registry.files_of(champion) as old, registry.files_of(candidate) as new:
        prompts = [Prompt.load(folder) for folder in (old, new)]
        for folder, prompt in zip((old, new), prompts, strict=True):
            release = Release(json.loads((folder / "voice.json").read_text(encoding="utf-8"))["release"])
            if release not in loaded:
                loaded[release] = load_models(
                    flow.engines, release, flow.base_folder, flow.polyphones, likeness=likeness
                )
            models = loaded[release]
            # Both Prompts show the voice; the champion's alone would favour the champion.
            centre = np.mean([models.verifier.embed(shown.wave.numpy(), RATE_HZ) for shown in prompts], axis=0)
            records = score_version(
                folder, fixed_sentences(prompt.language), models, seed=config.evaluation.seed, centre=centre
            )
            pair: dict[str, Any] = dict.fromkeys(HALVES)
            spoken.append(spoken_of({"best": pair, "pairs": [{**pair, "utterances": records}]}))
    return compare(spoken[1], spoken[0], config.registry.gate, measures)


def _by(worse: float) -> str:
    """`worse by 0.012`, `better by 0.3`, `equal`: to three digits after the point."""
    rounded = round(worse, 3)
    return f"{'worse' if rounded > 0 else 'better'} by {abs(rounded):g}" if rounded else "equal"


def _move(registry: Registry, candidate: RegisteredVersion, verdict: Verdict, reason: str | None) -> None:
    """Point the aliases, and write on the version and the voice who did it and why."""
    why = reason or "; ".join(map(str, verdict.comparisons)) or "the first champion"
    kind = "force" if verdict.forced else "promote"
    moves = [_new_move(alias, verdict.before[alias], candidate.version, why, kind) for alias in verdict.moved]
    if not moves:
        return
    tags = {"promoted.when": moves[0].when, "promoted.by": moves[0].who, "promoted.why": why}
    if verdict.forced:
        tags |= {"promoted.forced": "true", "promoted.despite": "; ".join(verdict.refusals)}
    registry.tag(candidate, tags)
    for move in moves:
        registry.move(verdict.voice, move)
    registry.describe(verdict.voice, describe_voice(registry, verdict.voice))


def _new_move(alias: str, before: int | None, after: int, why: str, kind: str) -> Move:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Move(alias=alias, before=before, after=after, when=now, who=_user(), why=why, kind=kind)


def _user() -> str:
    """Who runs this; a container may know its user by number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
