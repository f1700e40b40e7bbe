"""Features: content, semantic tokens, text vectors and speaker vectors of each Utterance, from its stored FLAC."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gsv_core.checkpoints.base import BaseModel, load_base
from gsv_core.checkpoints.releases import Release
from gsv_core.features import extract_features
from pipelines.engines.choose import EngineConfig, load_speaker_verifier
from pipelines.engines.flac import decode_flac
from pipelines.engines.protocols import SpeakerVerifier
from pipelines.rows import Example, Rejection, SpokenClip
from pipelines.stage import Stage


@dataclass(frozen=True)
class FeatureModels:
    base: BaseModel
    speaker_verifier: SpeakerVerifier


@dataclass(frozen=True, kw_only=True)
class ExtractFeatures(Stage[SpokenClip, Example]):
    """One spoken clip in, an Example out. Features belong to a base: its digest is part of what decides the result.

    Rejects:
        not_finite: a model answered with NaN or infinity.
    """

    name = "features"
    release: Release = Release.NANO
    base_digest: str = ""
    base_folder: str | None = field(default=None)
    engines: EngineConfig = field(default_factory=EngineConfig)

    def fingerprint(self) -> dict[str, object]:
        # Where the files lie does not matter; what is in them does, and the digest says that.
        return {key: value for key, value in super().fingerprint().items() if key != "base_folder"}

    def load(self) -> FeatureModels:
        folder = Path(self.base_folder) if self.base_folder else None
        return FeatureModels(load_base(self.release, folder), load_speaker_verifier(self.engines))

    def process(self, row: SpokenClip, model: FeatureModels) -> Iterator[Example | Rejection]:
        utterance = row.utterance
        wave, rate_hz = decode_flac(row.flac)
        features = extract_features(model.base, wave, utterance)
        speaker = model.speaker_verifier.embed(wave, rate_hz).astype(np.float32)
        arrays = [features.content, features.text_vectors, features.speaker_vector, speaker]
        if not all(np.isfinite(array).all() for array in arrays if array is not None):
            yield Rejection(
                row_id=utterance.clip_id,
                voice=utterance.voice,
                uri=row.uri,
                stage=self.name,
                reason="not_finite",
                detail="a feature is NaN or infinite",
                start_sample=utterance.start_sample,
                num_samples=utterance.num_samples,
            )
            return
        yield Example(
            utterance=utterance,
            flac=row.flac,
            uri=row.uri,
            gain_db=row.gain_db,
            content=features.content,
            tokens=features.tokens,
            speaker=speaker,
            text_vectors=features.text_vectors,
            speaker_vector=features.speaker_vector,
        )
