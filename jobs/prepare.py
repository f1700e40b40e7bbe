"""Prepare: raw recordings → a corpus. Look at what is there, plan, and run only the units that are not committed."""

import io
import json
import logging
import platform
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gsv_core.checkpoints.base import BaseModel, load_base, tensors_digest
from gsv_core.text.front_end import engines as text_engines
from gsv_core.text.lexicon import FILE_NAME as LEXICON_NAME
from gsv_core.text.lexicon import Lexicon
from jobs.cluster import Cluster
from jobs.config import JobConfig
from jobs.progress import Progress
from jobs.rederive import rederive
from jobs.workspace import Workspace
from pipelines.corrections import FILE_NAME as CORRECTIONS_NAME
from pipelines.corrections import Corrections
from pipelines.engines.choose import check_engines
from pipelines.flow import Flow, build_flow
from pipelines.forgotten import read_forgotten
from pipelines.reference import make_reference
from pipelines.rows import RATE_HZ, REJECTION_SCHEMA, Rejection, recording_id, table_of
from pipelines.sources import HandedIn, gather
from pipelines.stage import digest_of
from pipelines.stages.shard import parquet_bytes
from pipelines.storage import Storage
from pipelines.units import Committed, Unit, plan, read_committed, read_plan
from pipelines.voice_card import VoiceCard

logger = logging.getLogger(__name__)

_TOOLS = ("torch", "torchaudio", "ray", "pyarrow", "webdataset", "transformers", "whisperx", "speechbrain", "gsv-fleet")


@dataclass(frozen=True, kw_only=True)
class PreparedVoice:
    """One voice of the corpus: its card, its committed units, and what was not even read."""

    card: VoiceCard
    units: tuple[Unit, ...]
    committed: tuple[Committed, ...]
    unread: tuple[Rejection, ...]
    failed_units: tuple[str, ...] = ()
    """First line of what went wrong, for each unit that could not be made."""

    @property
    def seconds_in(self) -> float:
        return self._seconds("duration_samples")

    @property
    def seconds_kept(self) -> float:
        return self._seconds("kept_samples")

    @property
    def seconds_rejected(self) -> float:
        return self._seconds("rejected_samples")

    @property
    def rejections(self) -> int:
        return len(self.unread) + sum(entry.rejected for entry in self.committed)

    def _seconds(self, field: str) -> float:
        return sum(getattr(account, field) for entry in self.committed for account in entry.accounts) / RATE_HZ


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A corpus as it stands: its digest, the base its features belong to, its voices by name."""

    corpus_digest: str
    base: BaseModel
    voices: dict[str, PreparedVoice]
    units_done_before: int
    units_made: int
    changed: bool = False
    """Something of the corpus is not as an earlier run left it."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run would do; for `--dry-run`."""

    voices: int
    recordings: int
    bytes: int
    units_to_do: int
    units_done: int


def prepare(
    recordings: Path, workspace: Workspace, config: JobConfig, cluster: Cluster, progress: Progress
) -> Prepared:
    """Bring the workspace's corpus up to what `recordings` holds now. Ray is started only if there is work."""
    check_engines(config.flow.engines)
    base = load_base(config.flow.release, _folder(config))
    flow_of(config, base)  # settings that do not fit together are named before a file is read
    corpus = workspace.storage
    handed_in = _gather(recordings, corpus, config, progress)
    referenced = _hear_references(handed_in, corpus, config)
    flow = flow_of(config, base, handed_in.lexicons, handed_in.corrections)
    planned = plan(handed_in.sources, flow.digest, corpus, heard_digest=flow.heard_digest)
    errors: dict[str, str] = {}
    if planned.to_do:
        derived = rederive(planned, flow, workspace, cluster, progress)
        left = tuple(unit for unit in planned.to_do if unit.unit_id not in derived)
        errors = _run(left, flow, workspace, cluster, progress) if left else {}
    changed = _write_unread(handed_in.rejections, {card.voice for card in handed_in.cards}, corpus)
    voices = _voices(handed_in, (*planned.done, *planned.to_do), errors, corpus)
    for voice in voices.values():
        changed |= _write_if_new(corpus, f"voices/{voice.card.voice}/voice.json", _card_json(voice.card))
        changed |= _write_lexicon(corpus, voice.card.voice, handed_in.lexicons.get(voice.card.voice))
        changed |= _write_corrections(voice, handed_in.corrections, corpus)
    _name_unmatched(handed_in.corrections, voices, corpus, progress)
    corpus_digest, described = _describe(corpus, config, flow, base, voices, handed_in.lexicons)
    return Prepared(
        corpus_digest=corpus_digest,
        base=base,
        voices=voices,
        units_done_before=len(planned.done),
        units_made=len(planned.to_do) - len(errors),
        changed=changed or described or referenced or bool(planned.to_do),
    )


def open_prepared(workspace: Workspace, config: JobConfig) -> Prepared:
    """The corpus as an earlier `prepare` left it.

    Raises:
        ValueError: there is none, or it was made for another base. (Another config of the flow is fine: what was
            prepared is trained as it is.)
    """
    corpus = workspace.storage
    if not corpus.exists("corpus.json"):
        raise ValueError(f"--workspace {workspace.root}: no corpus in it; make one with `gsv prepare RECORDINGS`")
    description = json.loads(corpus.read("corpus.json"))
    base = load_base(config.flow.release, _folder(config))
    if description["base_digest"] != base.digest:
        raise ValueError(
            f"--workspace {workspace.root}: the corpus was made for base {description['release']} "
            f"({description['base_digest'][:12]}), not {base.release} ({base.digest[:12]}); prepare it again, or give "
            "the base it was made for"
        )
    current = set(description["units"])
    units_by_id = {unit.unit_id: unit for unit in read_plan(corpus) if unit.unit_id in current}
    voices = {}
    for name in description["voices"]:
        card = VoiceCard(**json.loads(corpus.read(f"voices/{name}/voice.json")))
        marks = [mark.removesuffix(".done") for mark in corpus.names(f"voices/{name}/units")]
        units = tuple(units_by_id[unit_id] for unit_id in sorted(current & set(marks)))
        path = f"voices/{name}/rejected/inventory.parquet"
        unread = pq.read_table(io.BytesIO(corpus.read(path))).to_pylist() if corpus.exists(path) else []
        voices[name] = PreparedVoice(
            card=card,
            units=units,
            committed=tuple(read_committed(unit, corpus) for unit in units),
            unread=tuple(Rejection(**row) for row in unread),
        )
    return Prepared(
        corpus_digest=description["corpus_digest"],
        base=base,
        voices=voices,
        units_done_before=len(current),
        units_made=0,
    )


def forecast(recordings: Path, workspace: Workspace, config: JobConfig, progress: Progress) -> Forecast:
    """What `prepare` would find and do. Nothing but the inventory is written."""
    check_engines(config.flow.engines)
    flow = flow_of(config, load_base(config.flow.release, _folder(config)))
    corpus = workspace.storage
    handed_in = _gather(recordings, corpus, config, progress)
    planned = plan(handed_in.sources, flow.digest, corpus, heard_digest=flow.heard_digest, write=False)
    return Forecast(
        voices=len(handed_in.cards),
        recordings=len(handed_in.sources),
        bytes=sum(source.size_bytes for source in handed_in.sources),
        units_to_do=len(planned.to_do),
        units_done=len(planned.done),
    )


def flow_of(
    config: JobConfig,
    base: BaseModel,
    lexicons: Mapping[str, Lexicon] | None = None,
    corrections: Corrections | None = None,
) -> Flow:
    """The flow for this config and base, the voices' lexicons and what was corrected in their clips, with the names of
    what makes the derived members.
    """
    return build_flow(
        config.flow,
        base_digest=base.digest,
        symbols=base.spec.symbols,
        derived_from=derived_from(base, config),
        lexicons=lexicons,
        corrections=corrections,
    )


def derived_from(base: BaseModel, config: JobConfig) -> dict[str, str]:
    """What makes each derived member of a shard: all that a base has to say in it."""
    return {
        "content": f"{base.content_encoder.name} {base.content_encoder.digest[:16]}",
        "semantic": base.token_digest,
        "speaker": config.flow.engines.speaker_verifier,
        "phonemes": f"symbols {base.spec.symbols} {digest_of(text_engines())[:16]}",
        **({"bert": f"{base.text_encoder.name} {base.text_encoder.digest[:16]}"} if base.text_encoder else {}),
        **({"sv": tensors_digest(base.speaker_encoder.state_dict())} if base.speaker_encoder else {}),
    }


def _folder(config: JobConfig) -> Path | None:
    return Path(config.flow.base_folder) if config.flow.base_folder else None


def _gather(recordings: Path, corpus: Storage, config: JobConfig, progress: Progress) -> HandedIn:
    lexicon = Lexicon.read(Path(config.lexicon), config.language) if config.lexicon else None
    corrections = Corrections.read(Path(config.corrections)) if config.corrections else None
    forgotten = {record.voice: record for record in read_forgotten(corpus)}
    with progress.bar("look") as bar:
        handed_in = gather(
            recordings,
            corpus,
            language=config.language,
            lexicon=lexicon,
            corrections=corrections,
            forgotten={voice: record.consent_id for voice, record in forgotten.items()},
            on_file=lambda done, total: bar.update(done, total, "files"),
        )
    for voice in handed_in.withdrawn:
        progress.say(
            f"voice {voice} is left out: consent withdrawn on {forgotten[voice].when[:10]}; remove its folder, or give "
            "a new consent in voice.yaml"
        )
    return handed_in


def _run(
    units: tuple[Unit, ...], flow: Flow, workspace: Workspace, cluster: Cluster, progress: Progress
) -> dict[str, str]:
    """Make the units; unit id → first line of the error of those that could not be made."""
    from pipelines.runner import run_units

    cluster.start()
    errors = {}
    done = clips = recordings = 0
    audio_s = 0.0
    started = time.monotonic()
    with progress.bar("prepare") as bar:

        def show(rows: dict[str, int]) -> None:
            rate = audio_s / max(time.monotonic() - started, 1e-3)
            numbers = {"recordings": recordings, "hours": round(audio_s / 3600, 4), "times_real": round(rate, 2)}
            said = f"{recordings} recordings · {audio_s / 3600:.2f} h · {rate:.1f} × real time"
            bar.update(
                done, len(units), " · ".join([said, *(f"{stage} {count}" for stage, count in rows.items())]), numbers
            )

        show({})
        for result in run_units(units, flow, workspace.corpus_place, actors=cluster.workers, on_progress=show):
            done += 1
            clips += result.kept
            recordings += result.recordings
            audio_s += result.audio_seconds
            if result.error is not None:
                errors[result.unit_id] = result.error
                logger.error("voice %s, unit %s failed:\n%s", result.voice, result.unit_id, result.trace)
        bar.update(done, len(units), f"{clips} clips kept")
    return errors


def _voices(
    handed_in: HandedIn, units: Iterable[Unit], errors: dict[str, str], corpus: Storage
) -> dict[str, PreparedVoice]:
    by_voice: dict[str, list[Unit]] = {}
    for unit in units:
        by_voice.setdefault(unit.voice, []).append(unit)
    voices = {}
    for card in handed_in.cards:
        mine = sorted(by_voice.get(card.voice, []), key=lambda unit: unit.unit_id)
        made = [unit for unit in mine if unit.unit_id not in errors]
        voices[card.voice] = PreparedVoice(
            card=card,
            units=tuple(made),
            committed=tuple(read_committed(unit, corpus) for unit in made),
            unread=tuple(entry for entry in handed_in.rejections if entry.voice == card.voice),
            failed_units=tuple(errors[unit.unit_id] for unit in mine if unit.unit_id in errors),
        )
    return voices


def _hear_references(handed_in: HandedIn, corpus: Storage, config: JobConfig) -> bool:
    """Keep the vectors of the voices' reference recordings. Whether one of them is new."""
    made = [
        make_reference(card, handed_in.references[card.voice], corpus, config.flow.engines, config.flow.limits)
        for card in handed_in.cards
        if card.voice in handed_in.references
    ]
    return any(made)


def _write_unread(rejections: tuple[Rejection, ...], voices: set[str], corpus: Storage) -> bool:
    """Files that could not even be read belong to no unit; they stand in `rejected/inventory.parquet`.

    Says whether they are others than before.
    """
    changed = False
    for voice in sorted(voices):
        mine = [rejection for rejection in rejections if rejection.voice == voice]
        path = f"voices/{voice}/rejected/inventory.parquet"
        if mine:
            changed |= _write_if_new(corpus, path, parquet_bytes(table_of(mine, REJECTION_SCHEMA)))
        elif corpus.exists(path):
            corpus.delete(path)
            changed = True
    return changed


def _write_lexicon(corpus: Storage, voice: str, lexicon: Lexicon | None) -> bool:
    """Keep the words a voice is read with beside its shards, for synthesis. Whether they are others than before."""
    path = f"voices/{voice}/{LEXICON_NAME}"
    if lexicon:
        return _write_if_new(corpus, path, lexicon.text.encode())
    if not corpus.exists(path):
        return False
    corpus.delete(path)
    return True


def _write_corrections(voice: PreparedVoice, corrections: Corrections, corpus: Storage) -> bool:
    """Keep what was corrected in a voice's clips beside its shards. Whether it is other than before."""
    path = f"voices/{voice.card.voice}/{CORRECTIONS_NAME}"
    recordings = (recording_id(unit.voice, source.digest) for unit in voice.units for source in unit.sources)
    if mine := corrections.of(recordings):
        return _write_if_new(corpus, path, mine.table.encode())
    if not corpus.exists(path):
        return False
    corpus.delete(path)
    return True


def _name_unmatched(
    corrections: Corrections, voices: Mapping[str, PreparedVoice], corpus: Storage, progress: Progress
) -> None:
    """Say which corrections are of no clip there is: its recording was not handed in, or is cut otherwise now."""
    waiting = set(corrections.by_clip)
    for voice in voices.values():
        for unit in voice.units:
            if waiting and any(source.corrections for source in unit.sources):
                for folder, column in (("manifest", "clip_id"), ("rejected", "row_id")):
                    data = corpus.read(f"voices/{unit.voice}/{folder}/{unit.unit_id}.parquet")
                    waiting -= set(pq.read_table(io.BytesIO(data), columns=[column])[column].to_pylist())
    if waiting:
        progress.say(
            f"corrections: {len(waiting)} of {len(corrections)} are of no clip here, the first is {min(waiting)}; "
            "`gsv review` writes a table of the clips there are"
        )


def _describe(
    corpus: Storage,
    config: JobConfig,
    flow: Flow,
    base: BaseModel,
    voices: dict[str, PreparedVoice],
    lexicons: Mapping[str, Lexicon],
) -> tuple[str, bool]:
    """Write `corpus.json` if it says something new; the corpus digest, and whether it did."""
    units = sorted(unit.unit_id for voice in voices.values() for unit in voice.units)
    digest = digest_of(units)
    spec = base.spec
    description: dict[str, Any] = {
        "schema_version": 1,
        "corpus_digest": digest,
        "flow_digest": flow.digest,
        "release": str(base.release),
        "base_digest": base.digest,
        "token_digest": base.token_digest,
        "speech": spec.note,
        "engines": {**asdict(config.flow.engines), "align_models": dict(config.flow.engines.align_models)},
        "derived_from": flow.derived_from,
        "text": flow.fingerprint()["text"],
        **({"lexicons": {name: lexicons[name].digest[:16] for name in sorted(lexicons)}} if lexicons else {}),
        "symbols": spec.symbols,
        "tools": {"python": platform.python_version(), **{tool: version(tool) for tool in _TOOLS}},
        "voices": sorted(voices),
        "units": units,
        "counts": {
            "voices": len(voices),
            "recordings": sum(len(unit.sources) for voice in voices.values() for unit in voice.units),
            "utterances": sum(entry.kept for voice in voices.values() for entry in voice.committed),
            "seconds_in": round(sum(voice.seconds_in for voice in voices.values()), 3),
            "seconds_kept": round(sum(voice.seconds_kept for voice in voices.values()), 3),
            "seconds_rejected": round(sum(voice.seconds_rejected for voice in voices.values()), 3),
        },
    }
    new = _write_if_new(corpus, "corpus.json", json.dumps(description, indent=1, sort_keys=True).encode())
    return digest, new


def _write_if_new(corpus: Storage, path: str, data: bytes) -> bool:
    if corpus.exists(path) and corpus.read(path) == data:
        return False
    corpus.write(path, data)
    return True


def _card_json(card: VoiceCard) -> bytes:
    return json.dumps(asdict(card), indent=1, sort_keys=True, default=str).encode()


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Rows of a voice that were left out for one reason; `detail` is the first one's."""

    reason: str
    count: int
    detail: str


def left_out(voice: PreparedVoice, corpus: Storage) -> list[LeftOut]:
    """What was left out of a voice, by reason, the most frequent first."""
    rows = [(rejection.reason, rejection.detail) for rejection in voice.unread]
    for unit in voice.units:
        data = corpus.read(f"voices/{unit.voice}/rejected/{unit.unit_id}.parquet")
        table = pq.read_table(io.BytesIO(data), columns=["reason", "detail"])
        rows += zip(table["reason"].to_pylist(), table["detail"].to_pylist(), strict=True)
    details = dict(reversed(rows))
    counted = Counter(reason for reason, _ in rows).most_common()
    return [LeftOut(reason=reason, count=count, detail=details[reason]) for reason, count in counted]
