"""A corpus checked against itself: every file against its unit's mark, every manifest line against its shard.

Nothing is changed. What is damaged belongs to one unit, and a unit can be made again from its recordings: byte for
byte the same, since its id and its content follow from them.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage import Storage
from pipelines.units import Committed

_NEEDED = frozenset(("flac", "json", "content.npy", "speaker.npy", "semantic.npy"))
"""Members that every Example has; those of some bases and languages come on top."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that is not as its unit's mark says."""

    voice: str
    unit_id: str
    path: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was looked at, and what of it is damaged."""

    units: int
    files: int
    clips: int
    size_bytes: int
    damage: tuple[Damage, ...] = ()


@dataclass
class _Counted:
    units: int = 0
    files: int = 0
    clips: int = 0
    size_bytes: int = 0
    damage: list[Damage] = field(default_factory=list)


def verify_corpus(corpus: Storage, *, on_unit: Callable[[int, int], None] | None = None) -> Verified:
    """Read every committed unit of `corpus` whole; `on_unit(done, total)` is called after each.

    Raises:
        ValueError: there is no corpus.
    """
    if not corpus.exists("corpus.json"):
        raise ValueError(f"{corpus.root}: no corpus there; make one with `gsv prepare RECORDINGS`")
    marks = [
        (voice, name.removesuffix(".done"))
        for voice in corpus.names("voices")
        for name in corpus.names(f"voices/{voice}/units")
        if name.endswith(".done")
    ]
    counted = _Counted()
    for done, (voice, unit_id) in enumerate(marks, start=1):
        counted.units += 1
        counted.damage += _damage_of(voice, unit_id, corpus, counted)
        if on_unit is not None:
            on_unit(done, len(marks))
    counted.damage += _missing_units(corpus, {unit_id for _, unit_id in marks})
    return Verified(
        units=counted.units,
        files=counted.files,
        clips=counted.clips,
        size_bytes=counted.size_bytes,
        damage=tuple(counted.damage),
    )


def discard_damaged(verified: Verified, corpus: Storage) -> list[str]:
    """Take the marks of damaged units away, so that the next `prepare` makes those units again; their ids."""
    units = sorted({(damage.voice, damage.unit_id) for damage in verified.damage})
    for voice, unit_id in units:
        corpus.delete(f"voices/{voice}/units/{unit_id}.done")
    return [unit_id for _, unit_id in units]


def _missing_units(corpus: Storage, present: set[str]) -> list[Damage]:
    """Units that the corpus says it consists of, but whose mark is gone."""
    return [
        Damage(voice="", unit_id=unit_id, path="corpus.json", what="names a unit that is not committed")
        for unit_id in json.loads(corpus.read("corpus.json"))["units"]
        if unit_id not in present
    ]


def _damage_of(voice: str, unit_id: str, corpus: Storage, counted: _Counted) -> Iterator[Damage]:
    mark = f"voices/{voice}/units/{unit_id}.done"

    def damage(path: str, what: str) -> Damage:
        return Damage(voice=voice, unit_id=unit_id, path=path, what=what)

    try:
        committed = Committed.from_json(corpus.read(mark))
    except (ValueError, KeyError, TypeError) as error:
        yield damage(mark, f"is no mark of a unit: {error}")
        return
    except AssertionError as error:
        yield damage(mark, f"its samples do not balance: {error}")
        return
    shards: dict[str, dict[str, set[str]]] = {}
    manifest: list[dict[str, str]] = []
    for path, digest in committed.files.items():
        try:
            data = corpus.read(path)
        except FileNotFoundError:
            yield damage(path, "is missing")
            continue
        counted.files += 1
        counted.size_bytes += len(data)
        if hashlib.sha256(data).hexdigest() != digest:
            yield damage(path, f"has changed since it was committed ({len(data)} bytes)")
        elif path.endswith(".tar"):
            shards[path.rsplit("/", 1)[-1]] = _members(data)
        elif "/manifest/" in path:
            manifest = pq.read_table(pa.BufferReader(data), columns=["clip_id", "shard"]).to_pylist()
    if len(manifest) != committed.kept:
        yield damage(mark, f"counts {committed.kept} clips, the manifest holds {len(manifest)}")
    for line in manifest:
        members = shards.get(line["shard"], {}).get(line["clip_id"], set())
        if lacking := _NEEDED - members:
            yield damage(line["shard"], f"lacks {line['clip_id']}.{min(lacking)}")
    counted.clips += len(manifest)


def _members(shard: bytes) -> dict[str, set[str]]:
    """Clip id → suffixes of its members. The shard's digest held, so it is the tar that was written."""
    clips: dict[str, set[str]] = {}
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        for name in tar.getnames():
            identity, _, suffix = name.partition(".")
            clips.setdefault(identity, set()).add(suffix)
    return clips
