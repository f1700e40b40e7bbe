"""Screen: measure each Example on its own, and leave out what no setting would want.

A clip left out here is in no shard, so the bounds are few and loose. What a user may want to move, and what needs the
whole voice (someone else's clips, copies), is decided over the numbers by `pipelines.selection`, where it redoes no
unit. A number that could not be computed is None, and a bound on None rejects nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import numpy as np

from gsv_core.audio.levels import loudness_lufs
from gsv_core.metrics.fingerprint import fingerprint
from gsv_core.metrics.recognition import character_error_rate
from gsv_core.metrics.signal import bandwidth_hz, clipped_share, silence_share, snr_db
from gsv_core.metrics.speaker import consistency, windows
from pipelines.bounds import first_broken
from pipelines.engines.choose import EngineConfig, load_quality, load_speaker_verifier
from pipelines.engines.flac import decode_flac
from pipelines.engines.protocols import QualityModel, SpeakerVerifier
from pipelines.rows import RATE_HZ, Example, Rejection, Screening, Utterance
from pipelines.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an Example must meet to be stored at all: `least_*` and `most_*`; None sets no bound.

    Of 112 clips of the project's own recordings, rumbling and noisy ones among them, none comes near: they lie between
    13.7 and 68 dB, 0 and 0.26 of silence, 7.7 and 13 kHz, and none has a flat top.
    """

    least_snr_db: float | None = 0.0
    most_clipped_share: float | None = 0.1
    most_silence_share: float | None = 0.9
    least_bandwidth_hz: float | None = 1_000.0
    least_phonemes_per_second: float | None = 1.0
    most_phonemes_per_second: float | None = 50.0


@dataclass(frozen=True)
class ScreenModels:
    quality: QualityModel | None
    speaker_verifier: SpeakerVerifier


@dataclass(frozen=True, kw_only=True)
class ScreenExamples(Stage[Example, Example]):
    """One Example in, the same with its numbers and its fingerprint out.

    Rejects:
        <number>: the first bound it breaks, such as `snr_db`.
    """

    name = "screen"
    version: ClassVar[int] = 2
    bounds: Bounds = field(default_factory=Bounds)
    engines: EngineConfig = field(default_factory=EngineConfig)

    def load(self) -> ScreenModels:
        return ScreenModels(load_quality(self.engines), load_speaker_verifier(self.engines))

    def process(self, row: Example, model: ScreenModels) -> Iterator[Example | Rejection]:
        wave = decode_flac(row.flac)[0] if row.wave is None else row.wave
        numbers, infinite = _without_infinite(self._numbers(row.utterance, wave, RATE_HZ, model))
        broken = first_broken(self.bounds, vars(numbers))
        if broken is None:
            utterance, odd = _finite_utterance(row.utterance)
            yield replace(
                row,
                utterance=utterance,
                screening=numbers,
                fingerprint=fingerprint(wave, RATE_HZ).astype("<u4").tobytes(),
                not_finite=(*infinite, *odd),
                wave=None,
            )
            return
        utterance = row.utterance
        yield Rejection(
            row_id=utterance.clip_id,
            voice=utterance.voice,
            uri=row.uri,
            stage=self.name,
            reason=broken.number,
            detail=f"{broken.says(vars(numbers)[broken.number])}: {utterance.text[:80]!r}",
            start_sample=utterance.start_sample,
            num_samples=utterance.num_samples,
        )

    def _numbers(self, utterance: Utterance, wave: np.ndarray, rate_hz: int, model: ScreenModels) -> Screening:
        return Screening(
            snr_db=snr_db(wave, rate_hz),
            clipped_share=clipped_share(wave),
            silence_share=silence_share(wave, rate_hz),
            bandwidth_hz=bandwidth_hz(wave, rate_hz),
            phonemes_per_second=len(utterance.phonemes) / (len(wave) / rate_hz),
            character_error_rate=(
                character_error_rate(utterance.text, utterance.recognised_text, utterance.language)
                if utterance.given and utterance.recognised_text is not None
                else None
            ),
            quality=model.quality.predict(wave, rate_hz) if model.quality else None,
            level_lufs=loudness_lufs(wave, rate_hz),
            speaker_consistency=consistency(
                [model.speaker_verifier.embed(part, rate_hz) for part in windows(wave, rate_hz)]
            ),
        )


def _without_infinite(numbers: Screening) -> tuple[Screening, tuple[str, ...]]:
    """The numbers with None for NaN and infinity, and the names of those: no table may hold them."""
    names = tuple(entry.name for entry in fields(numbers) if _is_infinite(getattr(numbers, entry.name)))
    return replace(numbers, **dict.fromkeys(names)), names


def _finite_utterance(utterance: Utterance) -> tuple[Utterance, tuple[str, ...]]:
    """The same for what the recogniser said of itself."""
    names = tuple(name for name in ("confidence", "language_probability") if _is_infinite(getattr(utterance, name)))
    return replace(
        utterance,
        confidence=_finite(utterance.confidence),
        language_probability=_finite(utterance.language_probability),
        words=tuple(replace(word, confidence=_finite(word.confidence)) for word in utterance.words),
    ), names


def _finite(value: float | None) -> float | None:
    return None if _is_infinite(value) else value


def _is_infinite(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)
