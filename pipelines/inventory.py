"""The inventory of a corpus: (place, size, time of change) → digest, so that a second look rereads nothing."""

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.objects import ObjectStamp, object_address, object_digest, stamp_of
from pipelines.storage import Storage

_INVENTORY = "inventory.parquet"
_INVENTORY_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("changed_ns", pa.int64()),
        ("digest", pa.string()),
        ("etag", pa.string()),
    ]
)
_Known = dict[tuple[str, int, int, str | None], str]


def take_digests(
    uris: Sequence[str],
    stamps: Mapping[str, ObjectStamp],
    corpus: Storage,
    on_file: Callable[[int, int], None] | None,
) -> tuple[dict[str, tuple[int, str]], dict[str, str]]:
    """(size, digest) of every file, and why of those that cannot be read; unchanged files come from the inventory."""
    known = _load_inventory(corpus)
    digests: dict[str, tuple[int, str]] = {}
    unreadable: dict[str, str] = {}
    lines = []
    with ThreadPoolExecutor(max_workers=4) as pool:
        for done, (uri, line) in enumerate(
            zip(uris, pool.map(lambda uri: _digest_of(uri, stamps, known), uris)), start=1
        ):
            if isinstance(line, str):
                unreadable[uri] = line
            else:
                lines.append(line)
                digests[uri] = (line["size_bytes"], line["digest"])
            if on_file is not None:
                on_file(done, len(uris))
    table = pa.Table.from_pylist(sorted(lines, key=lambda line: line["uri"]), schema=_INVENTORY_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    if not known or known != {_inventory_key(line): line["digest"] for line in lines}:
        corpus.write(_INVENTORY, buffer.getvalue())
    return digests, unreadable


def _load_inventory(corpus: Storage) -> _Known:
    if not corpus.exists(_INVENTORY):
        return {}
    rows = pq.read_table(io.BytesIO(corpus.read(_INVENTORY))).to_pylist()
    return {_inventory_key(row): row["digest"] for row in rows}


def _inventory_key(row: dict[str, Any]) -> tuple[str, int, int, str | None]:
    return row["uri"], row["size_bytes"], row["changed_ns"], row.get("etag")


def _digest_of(uri: str, stamps: Mapping[str, ObjectStamp], known: _Known) -> dict[str, Any] | str:
    if object_address(uri) == uri:
        return _digest_of_object(uri, stamps.get(uri), known)
    try:
        status = os.stat(uri)  # noqa: PTH116 - as below
        digest = known.get((uri, status.st_size, status.st_mtime_ns, None))
        if digest is None:
            with open(uri, "rb") as file:  # noqa: PTH123 - the name may be stranger than Path allows
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return error.strerror or str(error)
    return {"uri": uri, "size_bytes": status.st_size, "changed_ns": status.st_mtime_ns, "digest": digest}


def _digest_of_object(uri: str, stamp: ObjectStamp | None, known: _Known) -> dict[str, Any] | str:
    try:
        stamp = stamp or stamp_of(uri)
        line = {"uri": uri, "size_bytes": stamp.size_bytes, "changed_ns": 0, "etag": stamp.etag}
        # Without a stamp nothing tells a changed object from the one that was read.
        digest = known.get(_inventory_key(line)) if stamp.etag else None
        return {**line, "digest": digest or object_digest(uri)}
    except (FileNotFoundError, PermissionError) as error:
        return str(error) or type(error).__name__
