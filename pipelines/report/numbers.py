"""What a corpus and its runs say about themselves: the stored tables and JSON, read into one record for the report.

Nothing is computed here that decides anything; a number that no file holds is None. Only the units that `corpus.json`
names count: older ones wait for `gsv gc`.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from gsv_core.text.coverage import Coverage
from pipelines.report.coverage import voice_coverage
from pipelines.report.listening import AudioSample, within_budget
from pipelines.report.tables import clip_audio, committed_units, current_units, read_json, read_rows
from pipelines.rows import RATE_HZ
from pipelines.storage import Storage, open_storage

STATES = ("registered", "trained", "too_little_data", "failed", "prepared")
_OUTCOMES = "report/outcomes.json"
_UNREAD = "rejected/inventory.parquet"  # files that were rejected before they became part of a unit
_ROLES = ("recogniser", "speaker_verifier", "quality", "voice_activity")
_AUDIO_BYTES = 7_000_000  # of the whole page; base64 makes 9.3 MB of it
_AUDIO_BYTES_PER_VOICE = 2_000_000
_EXAMPLES_PER_REASON = 3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended for one voice: what no file of the corpus itself can tell."""

    state: str
    reason: str = ""
    run_id: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    model_uri: str | None = None

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"report: a voice's state is one of {', '.join(STATES)}, got {self.state!r}")


@dataclass(frozen=True, kw_only=True)
class RejectionGroup:
    """Rows that one stage left out for one reason. `seconds` is None where a row has no place in a recording."""

    stage: str
    reason: str
    count: int
    seconds: float | None
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One number of every kept clip; `missing` clips have none. `engine` made it, where one did."""

    key: str
    values: tuple[float, ...]
    missing: int = 0
    engine: str | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of one training phase over its steps. `kind` is `train` or `held_out`."""

    phase: str
    metric: str
    kind: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class SpokenSentence:
    """A held-out sentence as the best pair spoke it, and what the recogniser heard."""

    text: str
    recognised: str | None
    numbers: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Scores of one saved GPT x SoVITS pair, or of what it is compared with (`semantic` and `wave` empty)."""

    label: str
    semantic: str
    wave: str
    numbers: Mapping[str, float | None]
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainedNumbers:
    """One finished run of a voice."""

    run_id: str
    release: str
    base_digest: str
    seed: int | None
    seconds_train: float | None
    seconds_held_out: float | None
    utterances_train: int | None
    utterances_held_out: int | None
    recipe: Mapping[str, Any]
    cost: Mapping[str, Any]
    curves: tuple[Curve, ...]
    pairs: tuple[PairScores, ...]
    compared: tuple[PairScores, ...]
    """The held-out recordings themselves, and the base before training."""
    best: PairScores | None
    rule: str
    sentences: tuple[SpokenSentence, ...]
    independent: bool | None
    speech_note: str | None
    engines: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class VoiceNumbers:
    """Everything the page says about one voice. Lengths in seconds of normalised audio."""

    voice: str
    state: str
    reason: str = ""
    display_name: str = ""
    """What its people call it, where that had to be changed to be a safe name."""
    languages: Mapping[str, float] = field(default_factory=dict)
    recordings: int = 0
    utterances: int = 0
    given_transcripts: int = 0
    seconds_in: float = 0.0
    seconds_kept: float = 0.0
    seconds_rejected: float = 0.0
    seconds_non_speech: float = 0.0
    seconds_selected: float | None = None
    seconds_held_out: float | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Kept clips that the selection did not take: reason -> count."""
    rejections: tuple[RejectionGroup, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    """What the clips chosen for training, or else all that were kept, cover of each language spoken."""
    trained: TrainedNumbers | None = None
    model_name: str | None = None
    model_version: str | None = None
    model_uri: str | None = None
    samples: tuple[AudioSample, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CorpusNumbers:
    """A corpus and its voices, as the report shows them."""

    name: str
    digest: str | None = None
    voices: tuple[VoiceNumbers, ...] = ()
    engines: Mapping[str, str] = field(default_factory=dict)
    """role -> engine name: recogniser, speaker_verifier, quality, voice_activity, content"""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Versions and digests, in words, for whoever has to make it again."""
    notes: tuple[str, ...] = ()

    def total(self, name: str) -> float:
        """The sum of one length over all voices, such as `seconds_kept`."""
        return math.fsum(getattr(voice, name) for voice in self.voices)

    def count(self, state: str) -> int:
        return sum(voice.state == state for voice in self.voices)

    def rejections(self) -> tuple[RejectionGroup, ...]:
        """Groups over all voices, the longest first."""
        return _grouped(
            (group.stage, group.reason, group.count, group.seconds, example)
            for voice in self.voices
            for group in voice.rejections
            for example in (group.examples or ("",))[:1]
        )


def record_outcomes(corpus: Path | str | Storage, outcomes: Mapping[str, Outcome]) -> None:
    """Note how a job ended, for each of its voices, beside the report; what an earlier job noted is replaced."""
    record = {voice: asdict(outcome) for voice, outcome in outcomes.items()}
    open_storage(corpus).write(_OUTCOMES, json.dumps(record, sort_keys=True, indent=1).encode())


def collect(corpus: Path | str | Storage, outcomes: Mapping[str, Outcome] | None = None) -> CorpusNumbers:
    """Read a corpus. `outcomes` is added to what `record_outcomes` noted; without either, states follow from files.

    Raises:
        ValueError: there is no corpus in this place.
    """
    storage = open_storage(corpus)
    known = {**read_outcomes(storage), **(outcomes or {})}
    about = read_json(storage, "corpus.json")
    names = storage.names("voices")
    if not about and not names:
        raise ValueError(f"{storage.root}: no corpus here; `gsv prepare` or `gsv onboard` makes one")
    units = current_units(storage)
    voices = sorted({name for name in names if _is_current(storage, name, units)} | known.keys())
    engines = {role: str(name) for role, name in (about.get("engines") or {}).items() if name and role in _ROLES}
    rows: list[VoiceNumbers] = []
    room = _AUDIO_BYTES
    for voice in voices:
        # Many voices have little or nothing to play, so each may take twice its share of what is left.
        budget = min(_AUDIO_BYTES_PER_VOICE, room, 2 * room // (len(voices) - len(rows)))
        rows.append(_voice(storage, voice, known.get(voice), units, engines, budget))
        room -= sum(len(sample.data) for sample in rows[-1].samples)
    # A run names its engines with their versions, a config without.
    measured = {role: name for row in rows if row.trained for role, name in row.trained.engines.items()}
    notes = {row.trained.speech_note for row in rows if row.trained} | {about.get("speech")}
    return CorpusNumbers(
        name=PurePath(storage.root).name,
        digest=about.get("corpus_digest"),
        voices=tuple(rows),
        engines={**engines, **measured},
        facts=_facts(about),
        notes=tuple(sorted(note for note in notes if note)),
    )


def collect_coverage(corpus: Path | str | Storage, voice: str) -> tuple[Coverage, ...]:
    """What the report says one voice covers, without reading the rest.

    Raises:
        ValueError: there is no corpus in this place, or no such voice in it.
    """
    storage = open_storage(corpus)
    about, voices = read_json(storage, "corpus.json"), storage.names("voices")
    if not about and not voices:
        raise ValueError(f"{storage.root}: no corpus here; `gsv prepare` or `gsv onboard` makes one")
    if voice not in voices:
        raise ValueError(f"{storage.root}: no voice {voice!r} in it; there are {', '.join(sorted(voices)) or 'none'}")
    place = f"voices/{voice}"
    committed = committed_units(storage, place, current_units(storage))
    clips = {
        row["clip_id"] for done in committed for row in read_rows(storage, f"{place}/manifest/{done.unit_id}.parquet")
    }
    outcome = read_outcomes(storage).get(voice)
    run_id = outcome.run_id if outcome and outcome.run_id else _finished_run(storage, place)
    run = read_json(storage, f"{place}/runs/{run_id}/run.json") if run_id else {}
    selection = _selection(storage, place, run.get("selection_digest"), clips)
    chosen = {row["clip_id"] for row in selection if row["keep"]} or None
    return voice_coverage(storage, place, [done.unit_id for done in committed], chosen)


def _is_current(storage: Storage, voice: str, units: set[str] | None) -> bool:
    """Whether a voice has a unit that still counts, or files that could not even be read."""
    return bool(committed_units(storage, f"voices/{voice}", units)) or storage.exists(f"voices/{voice}/{_UNREAD}")


def _voice(
    storage: Storage,
    voice: str,
    outcome: Outcome | None,
    units: set[str] | None,
    engines: Mapping[str, str],
    budget: int,
) -> VoiceNumbers:
    place = f"voices/{voice}"
    committed = committed_units(storage, place, units)
    manifest = [row for done in committed for row in read_rows(storage, f"{place}/manifest/{done.unit_id}.parquet")]
    rejected = [row for done in committed for row in read_rows(storage, f"{place}/rejected/{done.unit_id}.parquet")]
    rejected += read_rows(storage, f"{place}/{_UNREAD}")
    card = read_json(storage, f"{place}/voice.json")
    accounts = [account for done in committed for account in done.accounts]
    run_id = outcome.run_id if outcome and outcome.run_id else _finished_run(storage, place)
    run = read_json(storage, f"{place}/runs/{run_id}/run.json") if run_id else {}
    trained = _trained(storage, f"{place}/runs/{run_id}", run) if run else None
    selection = _selection(storage, place, run.get("selection_digest"), {row["clip_id"] for row in manifest})
    state = outcome.state if outcome else ("trained" if trained else "prepared")
    languages: dict[str, float] = defaultdict(float)
    for row in manifest:
        languages[row["language"] or "unknown"] += row["num_samples"] / RATE_HZ
    samples = _listen(storage, place, run_id, manifest, selection) if manifest else []
    chosen = {row["clip_id"] for row in selection if row["keep"]} or None
    return VoiceNumbers(
        voice=voice,
        state=state,
        reason=outcome.reason if outcome else "",
        display_name=str(card.get("display_name") or ""),
        languages=dict(sorted(languages.items(), key=lambda entry: -entry[1])),
        recordings=len(accounts),
        utterances=len(manifest),
        given_transcripts=sum(bool(row.get("given")) for row in manifest),
        seconds_in=sum(account.duration_samples for account in accounts) / RATE_HZ,
        seconds_kept=sum(account.kept_samples for account in accounts) / RATE_HZ,
        seconds_rejected=sum(account.rejected_samples for account in accounts) / RATE_HZ,
        seconds_non_speech=sum(account.non_speech_samples for account in accounts) / RATE_HZ,
        seconds_selected=_seconds(row for row in selection if row["keep"]) if selection else None,
        seconds_held_out=_seconds(row for row in selection if row["keep"] and row["split"] == "held_out")
        if selection
        else None,
        left_out=dict(Counter(row["reason"] for row in selection if not row["keep"]).most_common()),
        rejections=_rejections(rejected),
        distributions=_distributions(manifest, engines),
        coverage=voice_coverage(storage, place, [done.unit_id for done in committed], chosen),
        trained=trained,
        model_name=outcome.model_name if outcome else None,
        model_version=outcome.model_version if outcome else None,
        model_uri=outcome.model_uri if outcome else None,
        samples=within_budget(samples, budget),
    )


def _selection(storage: Storage, place: str, digest: str | None, clips: set[str]) -> list[dict[str, Any]]:
    """The selection a run names; without a run, the one that knows most of the present clips."""
    if digest is not None:
        return read_rows(storage, f"{place}/selection/{digest}.parquet")
    tables = [read_rows(storage, f"{place}/selection/{name}") for name in storage.names(f"{place}/selection")]
    return max(tables, key=lambda table: sum(row["clip_id"] in clips for row in table), default=[])


def _finished_run(storage: Storage, place: str) -> str | None:
    """The voice's finished run; of several, the one trained on most speech."""
    runs = [run for run in storage.names(f"{place}/runs") if storage.exists(f"{place}/runs/{run}/done.json")]

    def seconds(run: str) -> float:
        return read_json(storage, f"{place}/runs/{run}/run.json").get("seconds_train") or 0.0

    return max(runs, key=seconds, default=None)


def _trained(storage: Storage, place: str, run: Mapping[str, Any]) -> TrainedNumbers:
    scores = read_json(storage, f"{place}/scores.json")
    chosen = scores.get("best") or {}
    pairs = []
    sentences: tuple[SpokenSentence, ...] = ()
    for pair in scores.get("pairs") or ():
        best = (pair["semantic"], pair["wave"]) == (chosen.get("semantic"), chosen.get("wave"))
        label = f"{save_name(pair['semantic'])} + {save_name(pair['wave'])}"
        row = PairScores(label=label, semantic=pair["semantic"], wave=pair["wave"], numbers=_numbers(pair), best=best)
        pairs.append(row)
        if best:
            sentences = tuple(
                SpokenSentence(
                    text=entry["text"],
                    recognised=entry.get("recognised"),
                    # Before its second form a record held its numbers beside its words.
                    numbers=_numbers(entry.get("numbers", entry)),
                )
                for entry in pair.get("utterances") or ()
            )
    compared = tuple(
        PairScores(label=label, semantic="", wave="", numbers=_numbers(scores[key]))
        for key, label in (("ceiling", "Recordings themselves"), ("base", "Base, before training"))
        if scores.get(key)
    )
    return TrainedNumbers(
        run_id=str(run.get("run_id", "")),
        release=str(run.get("release", "")),
        base_digest=str(run.get("base_digest", "")),
        seed=run.get("seed"),
        seconds_train=run.get("seconds_train"),
        seconds_held_out=run.get("seconds_held_out"),
        utterances_train=run.get("utterances_train"),
        utterances_held_out=run.get("utterances_held_out"),
        recipe=run.get("recipe") or {},
        cost=read_json(storage, f"{place}/cost.json"),
        curves=_curves(storage, f"{place}/curves.jsonl"),
        pairs=tuple(pairs),
        compared=compared,
        best=next((row for row in pairs if row.best), None),
        rule=str(chosen.get("rule") or ""),
        sentences=sentences,
        independent=scores.get("independent"),
        speech_note=scores.get("speech"),
        engines={role: str(name) for role, name in (scores.get("engines") or {}).items() if name},
    )


def save_name(weights: str) -> str:
    """`semantic-s000040` -> `GPT 40`, the way people say it."""
    phase, _, step = weights.rpartition("-s")
    names = {"semantic": "GPT", "wave": "SoVITS"}
    return f"{names.get(phase, phase)} {int(step):,}" if step.isdigit() else weights


def _curves(storage: Storage, path: str) -> tuple[Curve, ...]:
    """Every metric of `curves.jsonl`. A resumed run may have written a step twice: the later line counts."""
    if not storage.exists(path):
        return ()
    series: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for line in storage.read(path).decode().splitlines():
        record = json.loads(line)
        for metric, value in record["metrics"].items():
            if value is not None and math.isfinite(value):
                series[record["phase"], metric, record["kind"]][record["step"]] = float(value)
    return tuple(
        Curve(phase=phase, metric=metric, kind=kind, points=tuple(sorted(points.items())))
        for (phase, metric, kind), points in series.items()
    )


def _rejections(rows: Sequence[Mapping[str, Any]]) -> tuple[RejectionGroup, ...]:
    def parts() -> Iterator[tuple[str, str, int, float | None, str]]:
        for row in rows:
            seconds = None if row["num_samples"] is None else row["num_samples"] / RATE_HZ
            detail = f": {row['detail']}" if row["detail"] else ""
            # Only the name: a whole URI may carry a key, and says nothing more to whoever reads this.
            yield row["stage"], row["reason"], 1, seconds, f"{PurePath(row['uri']).name}{detail}"

    return _grouped(parts())


def _grouped(rows: Iterator[tuple[str, str, int, float | None, str]]) -> tuple[RejectionGroup, ...]:
    """Rows (stage, reason, count, seconds, example) added up by stage and reason, the longest first."""
    groups: dict[tuple[str, str], list[tuple[int, float | None, str]]] = defaultdict(list)
    for stage, reason, count, seconds, example in rows:
        groups[stage, reason].append((count, seconds, example))
    result = []
    for (stage, reason), entries in groups.items():
        lengths = [seconds for _, seconds, _ in entries if seconds is not None]
        examples = list(dict.fromkeys(example for *_, example in entries if example))
        result.append(
            RejectionGroup(
                stage=stage,
                reason=reason,
                count=sum(count for count, *_ in entries),
                seconds=math.fsum(lengths) if lengths else None,
                examples=tuple(examples[:_EXAMPLES_PER_REASON]),
            )
        )
    return tuple(sorted(result, key=lambda group: (-(group.seconds or 0.0), -group.count, group.stage, group.reason)))


def _distributions(manifest: Sequence[Mapping[str, Any]], engines: Mapping[str, str]) -> tuple[Distribution, ...]:
    made_by = {
        "quality": engines.get("quality"),
        "character_error_rate": engines.get("recogniser"),
        "speaker_consistency": engines.get("speaker_verifier"),
    }
    keys = ("level_lufs", "snr_db", "phonemes_per_second", "quality", "character_error_rate", "speaker_consistency")
    columns = {"clip_seconds": [row["num_samples"] / RATE_HZ for row in manifest]}
    columns |= {key: [row.get(key) for row in manifest] for key in keys}
    result = []
    for key, column in columns.items():
        values = tuple(float(value) for value in column if value is not None and math.isfinite(value))
        missing = len(column) - len(values)
        result.append(Distribution(key=key, values=values, missing=missing, engine=made_by.get(key)))
    return tuple(result)


def _listen(
    storage: Storage,
    place: str,
    run_id: str | None,
    manifest: Sequence[Mapping[str, Any]],
    selection: Sequence[Mapping[str, Any]],
) -> list[AudioSample]:
    """The Prompt, then held-out sentences as recorded and as spoken; without a run, some of what was kept."""
    by_clip = {row["clip_id"]: row for row in manifest}
    samples = []
    run = f"{place}/runs/{run_id}"
    if run_id and storage.exists(f"{run}/prompt.flac"):
        prompt = read_json(storage, f"{run}/prompt.json")
        samples.append(
            AudioSample(
                title="Prompt",
                text=str(prompt.get("text", "")),
                language=str(prompt.get("language", "")),
                data=storage.read(f"{run}/prompt.flac"),
            )
        )
    spoken = _best_utterances(read_json(storage, f"{run}/scores.json") if run_id else {})[:2]
    recorded = clip_audio(
        storage, place, [by_clip[entry["clip_id"]] for entry in spoken if entry["clip_id"] in by_clip]
    )
    for entry in spoken:
        clip_id, text = str(entry["clip_id"]), str(entry["text"])
        language = str(by_clip[clip_id]["language"]) if clip_id in by_clip else ""
        if clip_id in recorded:
            samples.append(AudioSample(title="Recorded", text=text, language=language, data=recorded[clip_id]))
        if entry.get("audio") and storage.exists(f"{run}/{entry['audio']}"):
            data = storage.read(f"{run}/{entry['audio']}")
            samples.append(AudioSample(title="Spoken by the voice", text=text, language=language, data=data))
    if not samples:
        chosen = {row["clip_id"] for row in selection if row["keep"]} or set(by_clip)
        rows = [row for row in manifest if row["clip_id"] in chosen][:3]
        kept = clip_audio(storage, place, rows)
        for row in rows:
            if row["clip_id"] in kept:
                text, language = row["text"], row["language"] or ""
                data = kept[row["clip_id"]]
                samples.append(AudioSample(title="Kept clip", text=text, language=language, data=data))
    return samples


def _best_utterances(scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    chosen = scores.get("best") or {}
    for pair in scores.get("pairs") or ():
        if (pair["semantic"], pair["wave"]) == (chosen.get("semantic"), chosen.get("wave")):
            return list(pair.get("utterances") or ())
    return []


def _seconds(rows: Iterator[Mapping[str, Any]]) -> float:
    return sum(row["num_samples"] for row in rows) / RATE_HZ


def _numbers(record: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a score record; what could not be computed stays None."""
    return {
        key: value
        for key, value in record.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def _facts(about: Mapping[str, Any]) -> dict[str, str]:
    """The entries of corpus.json that the page says nowhere else; a group of entries becomes one line."""
    facts = {}
    for key, value in about.items():
        if key in ("schema_version", "speech", "engines", "counts", "voices", "units"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name} {entry}" for name, entry in value.items() if entry is not None)
        facts[key] = str(value)
    return facts


def read_outcomes(storage: Storage) -> dict[str, Outcome]:
    return {voice: Outcome(**record) for voice, record in read_json(storage, _OUTCOMES).items()}
