"""Features: content, semantic tokens, text vectors and speaker vectors of each Utterance, from its stored FLAC.

On a CPU clip by clip, on a GPU in batches of similar length inside one unit. What a corpus trains on is heard by the
content encoder as upstream's data preparation does it, much louder than it is stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gsv_core.checkpoints.base import BaseModel, load_base
from gsv_core.checkpoints.releases import Release
from gsv_core.features import HeardBefore, extract_features, features_before
from pipelines.engines.choose import EngineConfig, load_speaker_verifier
from pipelines.engines.flac import decode_flac
from pipelines.engines.protocols import SpeakerVerifier
from pipelines.rows import RATE_HZ, Example, Rejection, SpokenClip
from pipelines.stage import Stage


@dataclass(frozen=True)
class FeatureModels:
    base: BaseModel
    speaker_verifier: SpeakerVerifier
    before: Mapping[str, HeardBefore] = field(default_factory=dict)
    """By clip id, what was computed for many clips at once."""
    waves: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By clip id, the audio that was decoded for it."""


@dataclass(frozen=True, kw_only=True)
class ExtractFeatures(Stage[SpokenClip, Example]):
    """One spoken clip in, an Example out. Which models of a base make them, the flow's `derived_from` says.

    Rejects:
        not_finite: a model answered with NaN or infinity.
    """

    name = "features"
    version = 2
    release: Release = Release.NANO
    base_digest: str = ""
    base_folder: str | None = field(default=None)
    engines: EngineConfig = field(default_factory=EngineConfig)

    def fingerprint(self) -> dict[str, object]:
        # What of a base decides the features is said once, in `derived_from`: two releases may share all of it.
        of_base = ("release", "base_digest", "base_folder")
        return {key: value for key, value in super().fingerprint().items() if key not in of_base}

    def load(self) -> FeatureModels:
        return FeatureModels(self.load_base(), load_speaker_verifier(self.engines))

    def load_base(self) -> BaseModel:
        """The base, with its encoders on the configured device.

        Raises:
            ValueError: this machine has other files than the one that planned.
        """
        base = load_base(self.release, Path(self.base_folder) if self.base_folder else None)
        if self.base_digest and base.digest != self.base_digest:
            raise ValueError(
                f"the base {self.release} found here has digest {base.digest[:12]}, the flow was planned with "
                f"{self.base_digest[:12]}: put the same files on every machine"
            )
        device = self.engines.device
        base.content_encoder.to(device).ready()
        if base.text_encoder is not None:
            base.text_encoder.to(device).ready()
        if base.speaker_encoder is not None:
            base.speaker_encoder.to(device)
        return base

    def look_ahead(self, rows: Sequence[SpokenClip], model: FeatureModels) -> FeatureModels:
        if self.engines.device == "cpu":
            return model
        return self.batched(rows, model)

    @staticmethod
    def batched(rows: Sequence[SpokenClip], model: FeatureModels) -> FeatureModels:
        """Models that know the content and text vectors of these rows already."""
        waves = {row.utterance.clip_id: decode_flac(row.flac)[0] for row in rows}
        found = features_before(model.base, [(waves[row.utterance.clip_id], row.utterance) for row in rows])
        before = {row.utterance.clip_id: clip for row, clip in zip(rows, found, strict=True)}
        return replace(model, before=before, waves=waves)

    def process(self, row: SpokenClip, model: FeatureModels) -> Iterator[Example | Rejection]:
        utterance = row.utterance
        wave = model.waves.get(utterance.clip_id)
        if wave is None:
            wave, _ = decode_flac(row.flac)
        before = model.before.get(utterance.clip_id)
        features = extract_features(model.base, wave, utterance, loud=True, before=before)
        speaker = model.speaker_verifier.embed(wave, RATE_HZ).astype(np.float32)
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
            treatment=row.treatment,
            wave=wave,
            content=features.content,
            tokens=features.tokens,
            speaker=speaker,
            text_vectors=features.text_vectors,
            speaker_vector=features.speaker_vector,
        )
