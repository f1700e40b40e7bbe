"""A voice's reference recording becomes the vector of its speaker, kept in the corpus: made once per recording.

`prepare` makes it while the recordings are at hand; whoever selects later reads it.
"""

import io
from pathlib import Path

import numpy as np

from pipelines.engines.choose import EngineConfig, load_speaker_verifier
from pipelines.engines.decoder import DecodeLimits
from pipelines.rows import RATE_HZ, LevelledRecording, Recording, Rejection, Source
from pipelines.stages.ingest import IngestSources
from pipelines.stages.normalise import NormaliseRecordings
from pipelines.storage import Storage
from pipelines.voice_card import VoiceCard

_LONGEST_S = 30.0


def make_reference(card: VoiceCard, path: Path, corpus: Storage, engines: EngineConfig, limits: DecodeLimits) -> bool:
    """Keep the vector of the card's reference recording at `path`. Whether it is new.

    Raises:
        ValueError: the recording holds no sound that can be read.
    """
    place = _place(card, engines)
    if corpus.exists(place):
        return False
    recording = _heard(card, path, limits)
    vector = load_speaker_verifier(engines).embed(recording.wave[: round(_LONGEST_S * RATE_HZ)], RATE_HZ)
    if not np.isfinite(vector).all():
        raise ValueError(f"{path}: reference: the speaker verifier has no answer to it; give another recording")
    buffer = io.BytesIO()
    np.save(buffer, vector.astype(np.float32), allow_pickle=False)
    corpus.write(place, buffer.getvalue())
    return True


def read_reference(card: VoiceCard, corpus: Storage, engines: EngineConfig) -> np.ndarray | None:
    """(K,), what `make_reference` kept; None for a voice without a reference.

    Raises:
        ValueError: the corpus was prepared before the card named it, or with another speaker verifier.
    """
    if card.reference is None:
        return None
    place = _place(card, engines)
    if not corpus.exists(place):
        raise ValueError(f"voice {card.display_name!r}: its reference was not heard yet; prepare the corpus again")
    return np.load(io.BytesIO(corpus.read(place)), allow_pickle=False)


def _place(card: VoiceCard, engines: EngineConfig) -> str:
    return f"voices/{card.voice}/reference/{card.reference_digest}-{engines.speaker_verifier}.npy"


def _heard(card: VoiceCard, path: Path, limits: DecodeLimits) -> LevelledRecording:
    assert card.reference_digest is not None
    source = Source(voice=card.voice, uri=str(path), digest=card.reference_digest, size_bytes=path.stat().st_size)
    row: Source | Recording | LevelledRecording | Rejection = source
    for stage in (IngestSources(limits=limits), NormaliseRecordings(limits=limits)):
        (row,) = stage.process(row, stage.load())  # type: ignore[arg-type, attr-defined]
        if isinstance(row, Rejection):
            raise ValueError(f"{path}: reference: {row.reason}: {row.detail}")
    assert isinstance(row, LevelledRecording)
    return row
