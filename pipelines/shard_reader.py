"""Shards ∩ selection → what a trainer reads.

Arrays come back exactly as `stages.shard` stored them, audio as float32 in [-1, 1] at 32 kHz, in order of clip id.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gsv_core.training.batches import TrainingItem
from pipelines.engines.flac import decode_flac
from pipelines.rows import SelectionRow, Utterance, utterance_of
from pipelines.storage import Storage


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredExample:
    """One Example out of a shard: its Utterance, its numbers, and its arrays."""

    utterance: Utterance
    description: dict[str, Any]
    flac: bytes
    wave: np.ndarray
    rate_hz: int
    arrays: dict[str, np.ndarray]

    def training_item(self) -> TrainingItem:
        return TrainingItem(
            clip_id=self.utterance.clip_id,
            phoneme_ids=torch.tensor(self.utterance.phoneme_ids, dtype=torch.int64),
            tokens=torch.from_numpy(self.arrays["semantic"].astype(np.int64)),
            content=torch.from_numpy(self.arrays["content"].astype(np.float32)),
            text_vectors=_float32(self.arrays.get("bert")),
            speaker_vector=_float32(self.arrays.get("sv")),
            wave=torch.from_numpy(self.wave),
        )


def read_examples(voice: str, rows: Sequence[SelectionRow], corpus: Storage) -> list[StoredExample]:
    """The Examples of the selected rows, in order of clip id.

    Raises:
        ValueError: a shard is damaged or lacks a clip that the selection names.
    """
    wanted = {row.clip_id for row in rows}
    examples = {}
    for unit_id in sorted({row.unit_id for row in rows}):
        for name in corpus.names(f"voices/{voice}/shards"):
            if name.startswith(f"{unit_id}-"):
                for example in _examples(corpus.read(f"voices/{voice}/shards/{name}"), name, wanted):
                    examples[example.utterance.clip_id] = example
    if missing := wanted - examples.keys():
        raise ValueError(
            f"voice {voice}: {len(missing)} selected clips are in no shard, the first is {min(missing)}; "
            "the corpus is damaged: delete the voice's units/ marks and prepare it again"
        )
    return [examples[identity] for identity in sorted(examples)]


def _examples(data: bytes, name: str, wanted: set[str]) -> Iterator[StoredExample]:
    members: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                identity, _, suffix = member.name.partition(".")
                file = tar.extractfile(member)
                if identity in wanted and file is not None:
                    members.setdefault(identity, {})[suffix] = file.read()
    except tarfile.TarError as error:
        raise ValueError(f"shard {name} is damaged: {error}") from error
    for parts in members.values():
        description = json.loads(parts["json"])
        wave, rate_hz = decode_flac(parts["flac"])
        yield StoredExample(
            utterance=utterance_of(description),
            description=description,
            flac=parts["flac"],
            wave=wave,
            rate_hz=rate_hz,
            arrays={
                suffix.removesuffix(".npy"): np.load(io.BytesIO(part), allow_pickle=False)
                for suffix, part in parts.items()
                if suffix.endswith(".npy")
            },
        )


def _float32(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array.astype(np.float32))
