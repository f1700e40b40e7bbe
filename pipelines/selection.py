"""Select: what a voice does with its Utterances, from its manifests alone; no audio is read again.

Decides with voice-wide numbers: which clips are somebody else's (cosine to the voice's centroid), which are held out,
which may serve as Prompt. The result is a table, named by its own digest, and a pure function of its inputs.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gsv_core.metrics.speaker import robust_centroid
from pipelines.rows import MANIFEST_SCHEMA, RATE_HZ, SELECTION_SCHEMA, SelectionRow, table_of
from pipelines.stage import digest_of
from pipelines.storage import Storage
from pipelines.units import Unit

_FEWEST_TO_HOLD_OUT = 10
_FEWEST_RECORDINGS = 4
"""With fewer recordings one of them would be far more than a tenth, so single clips are held out instead."""


@dataclass(frozen=True, kw_only=True)
class SelectionPolicy:
    """How a voice's data is judged and split."""

    least_centroid_cosine: float = 0.6
    held_out_share: float = 0.1
    shortest_prompt_s: float = 3.0
    longest_prompt_s: float = 10.0
    fewest_utterances: int = 4
    least_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.held_out_share < 0.5:
            raise ValueError(f"selection: held_out_share must be between 0 and 0.5, got {self.held_out_share}")
        if self.fewest_utterances < 1:
            raise ValueError(f"selection: fewest_utterances must be at least 1, got {self.fewest_utterances}")
        if not 0 < self.shortest_prompt_s < self.longest_prompt_s:
            raise ValueError(
                "selection: need 0 < shortest_prompt_s < longest_prompt_s, got "
                f"{self.shortest_prompt_s} and {self.longest_prompt_s}"
            )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The decided rows of one voice, with the digest that names them."""

    voice: str
    digest: str
    rows: tuple[SelectionRow, ...]

    def kept(self, split: str | None = None) -> list[SelectionRow]:
        return [row for row in self.rows if row.keep and split in (None, row.split)]

    def seconds(self, split: str | None = None) -> float:
        return sum(row.num_samples for row in self.kept(split)) / RATE_HZ

    def enough(self, policy: SelectionPolicy) -> bool:
        return len(self.kept()) >= policy.fewest_utterances and self.seconds() >= policy.least_seconds


def select(voice: str, units: Sequence[Unit], corpus: Storage, policy: SelectionPolicy) -> Selection:
    """Decide on every Utterance of the given units, and write the decision down."""
    lines = read_manifests(voice, units, corpus)
    cosines = _centroid_cosines(lines)
    kept = [line for line, cosine in zip(lines, cosines) if cosine is None or cosine >= policy.least_centroid_cosine]
    held_out = _held_out(kept, _held_out_before(voice, corpus), policy.held_out_share)
    keep_ids = {line["clip_id"] for line in kept}
    rows = []
    for line, cosine in zip(lines, cosines):
        identity, seconds = line["clip_id"], line["num_samples"] / RATE_HZ
        keep = identity in keep_ids
        split = ("held_out" if identity in held_out else "train") if keep else ""
        prompt = split == "train" and policy.shortest_prompt_s <= seconds <= policy.longest_prompt_s
        rows.append(
            SelectionRow(
                clip_id=identity,
                unit_id=line["unit_id"],
                keep=keep,
                reason="" if keep else "other_speaker",
                split=split,
                prompt=prompt,
                num_samples=line["num_samples"],
                centroid_cosine=None if cosine is None else round(cosine, 6),
            )
        )
    digest = digest_of([asdict(row) for row in rows])[:32]
    path = f"voices/{voice}/selection/{digest}.parquet"
    if not corpus.exists(path):
        buffer = io.BytesIO()
        pq.write_table(table_of(list(rows), SELECTION_SCHEMA), buffer)
        corpus.write(path, buffer.getvalue())
    return Selection(voice=voice, digest=digest, rows=tuple(rows))


def read_manifests(voice: str, units: Iterable[Unit], corpus: Storage) -> list[dict[str, Any]]:
    """The manifest lines of some units, each with its `unit_id`, in order of clip id."""
    lines: list[dict[str, Any]] = []
    for unit in units:
        table = pq.read_table(pa.BufferReader(corpus.read(f"voices/{voice}/manifest/{unit.unit_id}.parquet")))
        if table.schema.names != MANIFEST_SCHEMA.names:
            raise ValueError(f"the manifest of unit {unit.unit_id} has other columns; prepare the corpus again")
        lines += [{**line, "unit_id": unit.unit_id} for line in table.to_pylist()]
    return sorted(lines, key=lambda line: line["clip_id"])


def _centroid_cosines(lines: Sequence[dict[str, Any]]) -> list[float | None]:
    if len(lines) < 2:
        return [None] * len(lines)
    _, cosines = robust_centroid(np.array([line["speaker"] for line in lines], dtype=np.float32))
    return [float(cosine) for cosine in cosines]


def _held_out(lines: Sequence[dict[str, Any]], before: set[str], share: float) -> set[str]:
    """Clip ids to hold out: those that ever were, and as many more, in order of digest, as make up the share."""
    present = {line["clip_id"] for line in lines}
    held = before & present
    if len(lines) < _FEWEST_TO_HOLD_OUT:
        return held
    recordings = {line["recording_id"] for line in lines}
    key = "recording_id" if len(recordings) >= _FEWEST_RECORDINGS else "clip_id"
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(line[key], []).append(line["clip_id"])
    wanted = max(2, round(share * len(lines)))
    for name in sorted(groups, key=lambda name: hashlib.sha256(f"held out {name}".encode()).hexdigest()):
        if len(held) >= wanted:
            break
        # A recording far over the share would leave too little to train on.
        if len(held) + len(groups[name]) <= max(wanted, len(lines) // 4):
            held.update(groups[name])
    return held


def _held_out_before(voice: str, corpus: Storage) -> set[str]:
    """Every clip that any earlier selection held out: once held out, never trained on."""
    held: set[str] = set()
    for name in corpus.names(f"voices/{voice}/selection"):
        table = pq.read_table(pa.BufferReader(corpus.read(f"voices/{voice}/selection/{name}")))
        held |= {row["clip_id"] for row in table.to_pylist() if row["split"] == "held_out"}
    return held
