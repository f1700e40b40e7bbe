"""Forget: a voice whose consent was withdrawn is erased, from the corpus, its reports and the registry.

What stays is `forgotten/<voice>.json`: who, when, why and how much, with nothing of what was said. It keeps the voice
out of later runs. The record is written first and the voice's folder goes last, so that whatever was cut off is
finished by doing it again.
"""

import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.config import JobConfig
from jobs.report import report
from jobs.workspace import Workspace
from pipelines.forgotten import Forgotten, read_forgotten
from pipelines.rows import RATE_HZ
from pipelines.stage import digest_of
from pipelines.stages.shard import parquet_bytes
from pipelines.storage import Storage
from pipelines.units import Committed, Unit, read_plan, write_plan
from pipelines.voice_card import VoiceCard


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What was erased, or would be. `recordings` are files that were handed in; they are not ours to delete."""

    voice: str
    counts: dict[str, int]
    recordings: tuple[str, ...]
    done: bool
    complete: bool = True
    """False where an MLflow server keeps rows, marked as deleted, until its own `mlflow gc`."""


def forget(voice: str, workspace: Workspace, config: JobConfig, *, reason: str = "", really: bool = False) -> Erasure:
    """Erase `voice` where `really`, else only count what would go.

    Raises:
        ValueError: nothing of the voice is there, and it was not forgotten before either.
    """
    from jobs.blend import blend_folder, blends_of
    from jobs.tracking import Registry

    corpus = workspace.storage
    registry = Registry(config.registry.tracking_uri or workspace.default_tracking_uri, prefix=config.registry.prefix)
    with workspace.lease():
        folder = _folder_of(voice, workspace)
        units = [unit for unit in read_plan(corpus) if unit.voice == voice]
        before = {record.voice: record for record in read_forgotten(corpus)}
        traces = registry.traces(voice)
        there = folder.is_dir() or voice in corpus.names("voices")
        if not there and not units and not traces.registered and not traces.runs and voice not in before:
            known = ", ".join(corpus.names("voices")) or "none"
            raise ValueError(f"voice {voice!r} is not in {workspace.root}, nor in its registry; there are: {known}")
        recordings = sorted({uri for unit in units for source in unit.sources for uri in (source.uri, *source.copies)})
        # A blend speaks with this voice's weights or sound.
        blends = blends_of(registry, voice) if traces.registered else []
        counts = _counts(voice, folder, corpus) | {
            "units": len({unit.unit_id for unit in units}),
            "recordings": len(recordings),
            "versions": traces.versions,
            "tracked_runs": len(traces.runs),
            "blends": len(blends),
        }
        erasure = Erasure(voice=voice, counts=counts, recordings=tuple(recordings), done=really)
        if not really:
            return erasure
        _record(voice, units, reason, counts, before.get(voice), corpus)
        complete = True
        for name in blends:  # before the voice itself, by which they are found
            complete &= registry.erase(name, registry.traces(name))
            shutil.rmtree(blend_folder(workspace, name), ignore_errors=True)
        complete &= registry.erase(voice, traces)
        _drop_lines(set(recordings) | _unread(voice, corpus), corpus)
        _drop_plan(voice, corpus)
        _drop_description(voice, corpus)
        corpus.delete(f"voices/{voice}")
        _rewrite_report(voice, workspace)
    return replace(erasure, complete=complete)


def _folder_of(voice: str, workspace: Workspace) -> Path:
    """The voice's folder in the corpus. Raises ValueError for a name that is none, such as `..`."""
    folder = workspace.voice(voice)
    if folder.parent != workspace.corpus / "voices" or voice in ("", ".", "..") or folder.is_symlink():
        raise ValueError(f"{voice!r} is no name of a voice")
    return folder


def _counts(voice: str, folder: Path, corpus: Storage) -> dict[str, int]:
    place = f"voices/{voice}"
    marks = [Committed.from_json(corpus.read(f"{place}/units/{name}")) for name in corpus.names(f"{place}/units")]
    sizes = corpus.sizes(place)
    return {
        "files": len(sizes),
        "bytes": sum(sizes.values()),
        "utterances": sum(mark.kept for mark in marks),
        "seconds_kept": round(sum(account.kept_samples for mark in marks for account in mark.accounts) / RATE_HZ),
        "runs": sum(path.is_dir() for path in folder.glob("runs/*")),
    }


def _record(
    voice: str,
    units: list[Unit],
    reason: str,
    counts: dict[str, int],
    before: Forgotten | None,
    corpus: Storage,
) -> None:
    """Write who is forgotten; what an attempt that was cut off wrote stands, being the one that saw everything."""
    path = f"voices/{voice}/voice.json"
    card = VoiceCard(**json.loads(corpus.read(path))) if corpus.exists(path) else None
    if card is not None:
        consent_id = card.consent_id
    else:
        consent_id = next((source.consent_id for unit in units for source in unit.sources), None)
    if before is not None and not (card is not None and consent_id not in (None, before.consent_id)):
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = Forgotten(voice=voice, when=now, reason=reason, consent_id=consent_id, counts=counts)
    corpus.write(record.path, record.to_json())


def _unread(voice: str, corpus: Storage) -> set[str]:
    path = f"voices/{voice}/rejected/inventory.parquet"
    if not corpus.exists(path):
        return set()
    return set(pq.read_table(io.BytesIO(corpus.read(path)), columns=["uri"])["uri"].to_pylist())


def _drop_lines(uris: Iterable[str], corpus: Storage) -> None:
    """Take a voice's files out of the inventory."""
    if not corpus.exists("inventory.parquet"):
        return
    table = pq.read_table(io.BytesIO(corpus.read("inventory.parquet")))
    gone = set(uris)
    stays = [index for index, uri in enumerate(table["uri"].to_pylist()) if uri not in gone]
    if len(stays) < len(table):
        corpus.write("inventory.parquet", parquet_bytes(table.take(stays)))


def _drop_plan(voice: str, corpus: Storage) -> None:
    """Write the files of the plan that name the voice again without it, the new one before the old one goes."""
    for name in corpus.names("plan"):
        units = [Unit.from_json(line) for line in corpus.read(f"plan/{name}").splitlines()]
        others = [unit for unit in units if unit.voice != voice]
        if len(others) < len(units):
            write_plan(others, corpus)
            corpus.delete(f"plan/{name}")


def _drop_description(voice: str, corpus: Storage) -> None:
    """`corpus.json` without the voice: its units, its lexicon, its share of the counts."""
    if not corpus.exists("corpus.json"):
        return
    description: dict[str, Any] = json.loads(corpus.read("corpus.json"))
    if voice not in description["voices"]:
        return
    mine = {mark.removesuffix(".done") for mark in corpus.names(f"voices/{voice}/units")} & set(description["units"])
    marks = [Committed.from_json(corpus.read(f"voices/{voice}/units/{unit_id}.done")) for unit_id in sorted(mine)]
    accounts = [account for mark in marks for account in mark.accounts]
    units = [unit_id for unit_id in description["units"] if unit_id not in mine]
    description["voices"] = [name for name in description["voices"] if name != voice]
    description["units"], description["corpus_digest"] = units, digest_of(units)
    if "lexicons" in description:
        description["lexicons"].pop(voice, None)
    if counts := description.get("counts"):
        lost = {
            "voices": 1,
            "recordings": len(accounts),
            "utterances": sum(mark.kept for mark in marks),
            "seconds_in": sum(account.duration_samples for account in accounts) / RATE_HZ,
            "seconds_kept": sum(account.kept_samples for account in accounts) / RATE_HZ,
            "seconds_rejected": sum(account.rejected_samples for account in accounts) / RATE_HZ,
        }
        description["counts"] = {name: round(value - lost.get(name, 0), 3) for name, value in counts.items()}
    corpus.write("corpus.json", json.dumps(description, indent=1, sort_keys=True).encode())


def _rewrite_report(voice: str, workspace: Workspace) -> None:
    """Every page that may show the voice goes, and what was put out for review; the corpus report is written anew."""
    for page in workspace.report.parent.rglob("*.html"):
        page.unlink()
    shutil.rmtree(workspace.root / "review", ignore_errors=True)
    history = workspace.report.parent / "history.json"
    if history.is_file():
        corpora = json.loads(history.read_bytes())
        for corpus in corpora:
            corpus["voices"] = [entry for entry in corpus["voices"] if entry["voice"] != voice]
        data = json.dumps(corpora, indent=1, sort_keys=True).encode()
        workspace.storage.write("report/history.json", data)
    if workspace.storage.exists("corpus.json"):
        report(workspace.storage, workspace.report)
