"""The tables and JSON of a corpus, as the report reads them. Only the units that `corpus.json` names count."""

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import pyarrow.parquet as pq

from pipelines.storage import Storage
from pipelines.units import Committed


def current_units(storage: Storage) -> set[str] | None:
    """The units of the last run; None where no file says."""
    about = read_json(storage, "corpus.json")
    return set(about["units"]) if "units" in about else None


def committed_units(storage: Storage, place: str, units: set[str] | None) -> list[Committed]:
    """The voice's finished units; only those in `units`, if that is known."""
    names = [name.removesuffix(".done") for name in storage.names(f"{place}/units") if name.endswith(".done")]
    chosen = [name for name in names if units is None or name in units]
    return [Committed.from_json(storage.read(f"{place}/units/{name}.done")) for name in chosen]


def read_rows(storage: Storage, path: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file, without the wide columns; none if a unit wrote no such file."""
    if not storage.exists(path):
        return []
    file = pq.ParquetFile(io.BytesIO(storage.read(path)))
    wide = {"words", "phonemes", "phoneme_ids", "phonemes_per_character", "speaker", "fingerprint"}
    return file.read(columns=[name for name in file.schema_arrow.names if name not in wide]).to_pylist()


def clip_audio(storage: Storage, place: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The FLAC of some clips, by clip id, each shard read once; clips whose shard is gone are left out."""
    by_shard: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        by_shard[PurePath(row["shard"]).name].add(row["clip_id"])
    found = {}
    for shard, clips in by_shard.items():
        if not storage.exists(f"{place}/shards/{shard}"):
            continue
        with tarfile.open(fileobj=io.BytesIO(storage.read(f"{place}/shards/{shard}"))) as tar:
            for member in tar:
                clip_id, _, suffix = member.name.partition(".")
                file = tar.extractfile(member) if clip_id in clips and suffix == "flac" else None
                if file is not None:
                    found[clip_id] = file.read()
    return found


def read_json(storage: Storage, path: str) -> dict[str, Any]:
    return json.loads(storage.read(path)) if storage.exists(path) else {}
