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
from pipelines.sources import VoiceCard
from pipelines.stage import digest_of
from pipelines.stages.shard import parquet_bytes
from pipelines.storage import LocalStorage
from pipelines.units import Committed, Unit, read_plan, write_plan


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
    from jobs.tracking import Registry

    corpus = LocalStorage(workspace.corpus)
    registry = Registry(config.registry.tracking_uri or workspace.default_tracking_uri, prefix=config.registry.prefix)
    with workspace.lease():
        folder = _folder_of(voice, workspace)
        units = [unit for unit in read_plan(corpus) if unit.voice == voice]
        before = {record.voice: record for record in read_forgotten(corpus)}
        traces = registry.traces(voice)
        if not folder.is_dir() and not units and not traces.registered and not traces.runs and voice not in before:
            known = ", ".join(corpus.names("voices")) or "none"
            raise ValueError(f"voice {voice!r} is not in {workspace.root}, nor in its registry; there are: {known}")
        recordings = sorted({uri for unit in units for source in unit.sources for uri in (source.uri, *source.copies)})
        counts = _counts(folder) | {
            "units": len({unit.unit_id for unit in units}),
            "recordings": len(recordings),
            "versions": traces.versions,
            "tracked_runs": len(traces.runs),
        }
        erasure = Erasure(voice=voice, counts=counts, recordings=tuple(recordings), done=really)
        if not really:
            return erasure
        _record(voice, folder, units, reason, counts, before.get(voice), corpus)
        complete = registry.erase(voice, traces)
        _drop_lines(set(recordings) | _unread(folder), corpus)
        _drop_plan(voice, corpus)
        _drop_description(voice, corpus)
        if folder.is_dir():
            shutil.rmtree(folder)
        _rewrite_report(voice, workspace)
    return replace(erasure, complete=complete)


def _folder_of(voice: str, workspace: Workspace) -> Path:
    """The voice's folder in the corpus. Raises ValueError for a name that is none, such as `..`."""
    folder = workspace.voice(voice)
    if folder.parent != workspace.corpus / "voices" or voice in ("", ".", "..") or folder.is_symlink():
        raise ValueError(f"{voice!r} is no name of a voice")
    return folder


def _counts(folder: Path) -> dict[str, int]:
    marks = [Committed.from_json(path.read_bytes()) for path in folder.glob("units/*.done")]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "utterances": sum(mark.kept for mark in marks),
        "seconds_kept": round(sum(account.kept_samples for mark in marks for account in mark.accounts) / RATE_HZ),
        "runs": sum(path.is_dir() for path in folder.glob("runs/*")),
    }


def _record(
    voice: str,
    folder: Path,
    units: list[Unit],
    reason: str,
    counts: dict[str, int],
    before: Forgotten | None,
    corpus: LocalStorage,
) -> None:
    """Write who is forgotten; what an attempt that was cut off wrote stands, being the one that saw everything."""
    card = folder / "voice.json"
    if card.is_file():
        consent_id = VoiceCard(**json.loads(card.read_bytes())).consent_id
    else:
        consent_id = next((source.consent_id for unit in units for source in unit.sources), None)
    if before is not None and not (card.is_file() and consent_id not in (None, before.consent_id)):
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = Forgotten(voice=voice, when=now, reason=reason, consent_id=consent_id, counts=counts)
    corpus.write(record.path, record.to_json())


def _unread(folder: Path) -> set[str]:
    path = folder / "rejected" / "inventory.parquet"
    return set(pq.read_table(path, columns=["uri"])["uri"].to_pylist()) if path.is_file() else set()


def _drop_lines(uris: Iterable[str], corpus: LocalStorage) -> None:
    """Take a voice's files out of the inventory."""
    if not corpus.exists("inventory.parquet"):
        return
    table = pq.read_table(io.BytesIO(corpus.read("inventory.parquet")))
    gone = set(uris)
    stays = [index for index, uri in enumerate(table["uri"].to_pylist()) if uri not in gone]
    if len(stays) < len(table):
        corpus.write("inventory.parquet", parquet_bytes(table.take(stays)))


def _drop_plan(voice: str, corpus: LocalStorage) -> None:
    """Write the files of the plan that name the voice again without it, the new one before the old one goes."""
    for name in corpus.names("plan"):
        units = [Unit.from_json(line) for line in corpus.read(f"plan/{name}").splitlines()]
        others = [unit for unit in units if unit.voice != voice]
        if len(others) < len(units):
            write_plan(others, corpus)
            corpus.delete(f"plan/{name}")


def _drop_description(voice: str, corpus: LocalStorage) -> None:
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
        LocalStorage(workspace.corpus).write("report/history.json", data)
    if (workspace.corpus / "corpus.json").is_file():
        report(workspace.corpus)
