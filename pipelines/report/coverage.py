"""Manifests to what a voice's clips cover of its languages (`gsv_core.text.coverage`)."""

import io
from collections.abc import Container, Iterable, Iterator

import pyarrow.parquet as pq

from gsv_core.text.coverage import Coverage, measure
from pipelines.storage import Storage

_COLUMNS = ["clip_id", "language", "phonemes", "spans"]


def voice_coverage(
    storage: Storage, place: str, unit_ids: Iterable[str], clips: Container[str] | None = None
) -> tuple[Coverage, ...]:
    """What the clips of some units of the voice at `place` cover; only those in `clips`, if that is given."""
    return measure(
        span for unit_id in unit_ids for span in _spans(storage, f"{place}/manifest/{unit_id}.parquet", clips)
    )


def _spans(storage: Storage, path: str, clips: Container[str] | None) -> Iterator[tuple[str, list[str]]]:
    """(language, phonemes) of every stretch of one language; nothing if a unit wrote no such file."""
    if not storage.exists(path):
        return
    file = pq.ParquetFile(io.BytesIO(storage.read(path)))
    columns = file.read(columns=[name for name in _COLUMNS if name in file.schema_arrow.names]).to_pydict()
    nothing = [None] * file.metadata.num_rows
    for clip_id, language, phonemes, spans in zip(*(columns.get(name, nothing) for name in _COLUMNS)):
        if not phonemes or (clips is not None and clip_id not in clips):
            continue
        if not spans:
            yield str(language), phonemes
            continue
        start = 0
        for span in spans:
            yield span["language"], phonemes[start : start + span["num_phonemes"]]
            start += span["num_phonemes"]
