"""Plan the work, know what is committed, commit.

A unit is the piece of work that is committed at once: some recordings of one voice, about ten minutes of audio. Its id
is the digest of what goes in (the recordings' digests with what was said of them) and of everything that decides what
comes out. So a second plan over the same input finds the same units done, a new recording adds units and shifts none,
and a changed setting makes new units and leaves the old ones to be collected.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

from pipelines.rows import Account, Source
from pipelines.stage import digest_of
from pipelines.storage import Storage

UNIT_BYTES = 100 << 20
"""About ten minutes of 16-bit stereo at 44.1 kHz. Length is not known before decoding, so bytes stand for it."""
_EXPANSION = {".wav": 1, ".wave": 1, ".aif": 1, ".aiff": 1, ".flac": 2}
"""Bytes of PCM per byte of file, roughly; anything else is taken for a lossy codec."""
_LOSSY_EXPANSION = 10
_PCM_BYTES_PER_SECOND = 2 * 2 * 44_100
_UNITS_PER_FILE = 10_000


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Some Sources of one voice, in order of their digests, and the config they are made with."""

    unit_id: str
    voice: str
    config_digest: str
    sources: tuple[Source, ...]
    heard_digest: str = ""
    """Of the part of the config that knows no base. Units that differ in the rest alone share all but derived members;
    empty where that is not known."""

    @classmethod
    def of(cls, sources: Iterable[Source], config_digest: str, heard_digest: str = "") -> "Unit":
        ordered = tuple(sorted(sources, key=lambda source: source.digest))
        voice = ordered[0].voice
        key = digest_of([voice, config_digest, [_identity(source) for source in ordered]])
        return cls(
            unit_id=key[:20], voice=voice, config_digest=config_digest, sources=ordered, heard_digest=heard_digest
        )

    @property
    def content(self) -> tuple[str, tuple[bytes, ...]]:
        """What goes in: the same for units of the same recordings, whatever they are made with."""
        return self.voice, tuple(_key(source) for source in self.sources)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Unit":
        record = json.loads(text)
        sources = tuple(Source(**{**entry, "copies": tuple(entry["copies"])}) for entry in record.pop("sources"))
        return cls(sources=sources, **record)


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What a unit's `.done` says: its files with their digests, and where every sample of its recordings went."""

    unit_id: str
    voice: str
    config_digest: str
    files: dict[str, str]
    accounts: tuple[Account, ...]
    kept: int
    rejected: int
    counts: dict[str, int]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Committed":
        record = json.loads(text)
        accounts = tuple(Account(**entry) for entry in record.pop("accounts"))
        return cls(accounts=accounts, **record)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every unit the input needs: those that are done, and those to do, in that order of work.

    `earlier` names, by the id of a unit to do, a committed one of the same recordings that was made for another base.
    """

    done: tuple[Unit, ...]
    to_do: tuple[Unit, ...]
    earlier: dict[str, Unit] = field(default_factory=dict)


def plan(
    sources: Iterable[Source], config_digest: str, corpus: Storage, *, heard_digest: str = "", write: bool = True
) -> Plan:
    """Keep every planned unit that still holds, pack the rest, and write the plan down before any work.

    Where a committed unit differs in the base alone, its recordings stay together, so that it can be derived from.
    Without `write` the corpus stays as it is: what would be done.
    """
    marks: dict[str, set[str]] = {}

    def is_done(unit: Unit) -> bool:
        if unit.voice not in marks:
            marks[unit.voice] = set(corpus.names(f"voices/{unit.voice}/units"))
        return f"{unit.unit_id}.done" in marks[unit.voice]

    waiting: dict[str, dict[bytes, Source]] = {}
    for source in sources:
        waiting.setdefault(source.voice, {})[_key(source)] = source
    units = []
    others: dict[tuple[str, tuple[bytes, ...]], Unit] = {}
    for unit in read_plan(corpus):
        of_voice = waiting.get(unit.voice, {})
        keys = [_key(source) for source in unit.sources]
        if unit.config_digest == config_digest and all(key in of_voice for key in keys):
            # Names may have changed since; what is inside has not.
            units.append(Unit.of([of_voice.pop(key) for key in keys], config_digest, heard_digest))
        elif heard_digest and unit.heard_digest == heard_digest and is_done(unit):
            others[unit.content] = unit
    new = []
    for voice, content in sorted(others):
        of_voice = waiting.get(voice, {})
        if all(key in of_voice for key in content):
            new.append(Unit.of([of_voice.pop(key) for key in content], config_digest, heard_digest))
    new += [
        Unit.of(batch, config_digest, heard_digest)
        for voice in sorted(waiting)
        for batch in _packed(sorted(waiting.pop(voice).values(), key=lambda source: source.digest))
    ]
    if write:
        write_plan(new, corpus)
    units += new
    done = [unit for unit in units if is_done(unit)]
    to_do = [unit for unit in units if not is_done(unit)]
    to_do.sort(key=lambda unit: (-sum(source.size_bytes for source in unit.sources), unit.unit_id))
    earlier = {unit.unit_id: others[unit.content] for unit in to_do if others and unit.content in others}
    return Plan(done=tuple(sorted(done, key=lambda unit: unit.unit_id)), to_do=tuple(to_do), earlier=earlier)


def write_plan(units: Sequence[Unit], corpus: Storage) -> None:
    """Write new units down, many to a file: a file each would take half an hour for a million of them."""
    for start in range(0, len(units), _UNITS_PER_FILE):
        lines = "".join(unit.to_json() + "\n" for unit in units[start : start + _UNITS_PER_FILE]).encode()
        corpus.write(f"plan/{hashlib.sha256(lines).hexdigest()[:20]}.jsonl", lines)


def read_plan(corpus: Storage) -> Iterator[Unit]:
    """Every unit that was ever planned and not collected since."""
    for name in corpus.names("plan"):
        for line in corpus.read(f"plan/{name}").splitlines():
            yield Unit.from_json(line)


def done_path(unit: Unit) -> str:
    return f"voices/{unit.voice}/units/{unit.unit_id}.done"


def commit(unit: Unit, files: dict[str, bytes], committed: Committed, corpus: Storage) -> None:
    """Write a unit's files and, last, its mark. A unit that was committed meanwhile stays as it is."""
    for path, data in files.items():
        corpus.write(path, data)
    corpus.write_if_absent(done_path(unit), committed.to_json().encode())


def read_committed(unit: Unit, corpus: Storage) -> Committed:
    return Committed.from_json(corpus.read(done_path(unit)))


def file_digests(files: dict[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def estimated_seconds(source: Source) -> float:
    """How much audio a Source holds, going by its bytes alone: right for CD quality, too much for most others."""
    return _pcm_bytes(source) / _PCM_BYTES_PER_SECOND


def _pcm_bytes(source: Source) -> int:
    return source.size_bytes * _EXPANSION.get(PurePath(source.uri).suffix.lower(), _LOSSY_EXPANSION)


def _identity(source: Source) -> str:
    """What decides the result of one Source: its bytes, and what was said of them. Not its name."""
    said: list[Any] = [source.digest, source.language, source.transcript, source.transcript_format, len(source.copies)]
    # Only where there is one, so that units made without a lexicon, or without corrections, keep their ids.
    if source.lexicon:
        said.append(source.lexicon)
    if source.corrections:
        said.append(["corrections", source.corrections])
    return digest_of(said)


def _key(source: Source) -> bytes:
    """`_identity`, in the fewest bytes: there may be millions."""
    return bytes.fromhex(_identity(source))


def _packed(sources: list[Source]) -> list[list[Source]]:
    batches: list[list[Source]] = []
    size = 0
    for source in sources:
        weight = _pcm_bytes(source)
        if not batches or size + weight > UNIT_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(source)
        size += weight
    return batches
