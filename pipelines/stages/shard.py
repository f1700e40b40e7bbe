"""Shard: the Examples of one unit as WebDataset tars, and its manifest and rejections as Parquet.

A shard is read with nothing but `webdataset`. The same rows give the same bytes: members are sorted by clip id, times
and owners in the tar are fixed, Parquet is written without a clock.
"""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from pipelines.rows import MANIFEST_SCHEMA, REJECTION_SCHEMA, Example, Rejection, table_of


@dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """How a unit's Examples are put on disk. Not a row-wise stage: its row is the whole unit."""

    most_examples: int = 1_000
    most_bytes: int = 512 << 20

    def files(
        self,
        voice: str,
        unit_id: str,
        examples: Sequence[Example],
        rejections: Iterable[Rejection],
        derived_from: dict[str, str],
    ) -> dict[str, bytes]:
        """Path in the corpus → content, for every file of the unit but its mark.

        `derived_from` names what made the derived members (content encoder, quantiser, ...) and is put in every
        `.json`, so that another base recomputes only what differs.
        """
        ordered = sorted(examples, key=lambda example: example.utterance.clip_id)
        files: dict[str, bytes] = {}
        lines = []
        for number, group in enumerate(self._groups(ordered, derived_from)):
            name = f"voices/{voice}/shards/{unit_id}-{number:05d}.tar"
            files[name] = _tar([members for _, members in group])
            lines += [_manifest_line(example, name.rsplit("/", 1)[-1]) for example, _ in group]
        files[f"voices/{voice}/manifest/{unit_id}.parquet"] = parquet_bytes(table_of(lines, MANIFEST_SCHEMA))
        ordered_rejections = sorted(
            rejections, key=lambda rejection: (rejection.uri, rejection.start_sample or 0, rejection.row_id)
        )
        files[f"voices/{voice}/rejected/{unit_id}.parquet"] = parquet_bytes(
            table_of(ordered_rejections, REJECTION_SCHEMA)
        )
        return files

    def _groups(
        self, examples: Sequence[Example], derived_from: dict[str, str]
    ) -> list[list[tuple[Example, dict[str, bytes]]]]:
        groups: list[list[tuple[Example, dict[str, bytes]]]] = []
        size = 0
        for example in examples:
            members = shard_members(example, derived_from)
            weight = sum(len(data) for data in members.values())
            if not groups or len(groups[-1]) == self.most_examples or size + weight > self.most_bytes:
                groups.append([])
                size = 0
            groups[-1].append((example, members))
            size += weight
        return groups


def shard_members(example: Example, derived_from: dict[str, str]) -> dict[str, bytes]:
    """Member suffix → content of one Example."""
    utterance = {**asdict(example.utterance), **asdict(example.screening)}
    description = {**utterance, "uri": example.uri, "gain_db": example.gain_db, "derived_from": derived_from}
    members = {
        "flac": example.flac,
        "json": json.dumps(description, sort_keys=True, ensure_ascii=False).encode(),
        "content.npy": _npy(example.content),
        "speaker.npy": _npy(example.speaker),
        "semantic.npy": _npy(example.tokens),
    }
    if example.text_vectors is not None:
        members["bert.npy"] = _npy(example.text_vectors)
    if example.speaker_vector is not None:
        members["sv.npy"] = _npy(example.speaker_vector)
    return members


def parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _tar(groups: list[dict[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, mtime=0, user="gsv", group="gsv", encoder=False) as writer:
        for members in groups:
            key = json.loads(members["json"])["clip_id"]
            writer.write({"__key__": key, **members})
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _manifest_line(example: Example, shard: str) -> dict[str, object]:
    return {
        **asdict(example.utterance),
        **asdict(example.screening),
        "uri": example.uri,
        "gain_db": example.gain_db,
        "shard": shard,
        "speaker": example.speaker.tolist(),
        "fingerprint": example.fingerprint,
        "not_finite": list(example.not_finite),
        **(asdict(example.treatment) if example.treatment else {}),
    }
