"""Screen: measure each Example on its own, and leave out what is beyond a bound.

What needs the whole voice (someone else's clips, duplicates) is decided later, in `pipelines.selection`. A number that
could not be computed is None, and a bound on None rejects nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from gsv_core.audio.levels import loudness_lufs
from gsv_core.metrics.recognition import character_error_rate
from gsv_core.metrics.signal import bandwidth_hz, clipped_share, silence_share, snr_db
from pipelines.engines.choose import EngineConfig, load_quality
from pipelines.engines.flac import decode_flac
from pipelines.engines.protocols import QualityModel
from pipelines.rows import Example, Rejection, Screening
from pipelines.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an Example must meet: `least_*` and `most_*`; None sets no bound."""

    least_snr_db: float | None = 5.0
    most_clipped_share: float | None = 0.01
    most_silence_share: float | None = 0.7
    least_bandwidth_hz: float | None = 2_500.0
    least_phonemes_per_second: float | None = 3.0
    most_phonemes_per_second: float | None = 25.0
    least_confidence: float | None = None
    most_character_error_rate: float | None = 0.85
    """Of a given text against the recognised one. Pocketsphinx errs on 0.1 to 0.7 of the letters of clear speech, so
    this finds texts of something else only; with whisperX 0.3 is sensible."""
    least_language_probability: float | None = None
    least_quality: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScreenExamples(Stage[Example, Example]):
    """One Example in, the same with its numbers out.

    Rejects:
        <number>: the first bound it breaks, such as `snr_db` or `character_error_rate`.
    """

    name = "screen"
    bounds: Bounds = field(default_factory=Bounds)
    engines: EngineConfig = field(default_factory=EngineConfig)

    def load(self) -> QualityModel | None:
        return load_quality(self.engines)

    def process(self, row: Example, model: QualityModel | None) -> Iterator[Example | Rejection]:
        utterance = row.utterance
        wave, rate_hz = decode_flac(row.flac)
        numbers = Screening(
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
            quality=model.predict(wave, rate_hz) if model else None,
            level_lufs=loudness_lufs(wave, rate_hz),
        )
        broken = broken_bound(
            self.bounds,
            numbers,
            confidence=utterance.confidence,
            language_probability=utterance.language_probability,
        )
        if broken is None:
            yield replace(row, screening=numbers)
            return
        reason, detail = broken
        yield Rejection(
            row_id=utterance.clip_id,
            voice=utterance.voice,
            uri=row.uri,
            stage=self.name,
            reason=reason,
            detail=f"{detail}: {utterance.text[:80]!r}",
            start_sample=utterance.start_sample,
            num_samples=utterance.num_samples,
        )


def broken_bound(bounds: Bounds, numbers: Screening, **more: float | None) -> tuple[str, str] | None:
    """(name of the number, sentence) of the first bound that is broken; None where all are met."""
    values = {**vars(numbers), **more}
    for name, bound in vars(bounds).items():
        side, number = name.split("_", 1)
        value = values[number]
        if bound is None or value is None:
            continue
        if (side == "least" and value < bound) or (side == "most" and value > bound):
            word = "at least" if side == "least" else "at most"
            return number, f"{number} is {value:.3g}, {word} {bound:g} is needed"
    return None
