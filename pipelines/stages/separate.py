"""Separate: take the noise out of a Recording where its numbers ask for it, and keep that only where they improve."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from gsv_core.audio.levels import apply_gain, gain_to_target_db, loudness_lufs, shortfall_db, true_peak_db
from gsv_core.metrics.signal import snr_db
from pipelines.engines.choose import EngineConfig, load_quality
from pipelines.engines.protocols import QualityModel, Separator
from pipelines.engines.separator import SEPARATORS, load_separator
from pipelines.rows import RATE_HZ, LevelledRecording
from pipelines.stage import Stage

MODES = ("off", "auto", "on")
_QUALITY_WINDOWS = 6
"""Of 9 s, spread over the recording: enough to tell a noisy one."""


@dataclass(frozen=True, kw_only=True)
class SeparationConfig:
    """Whether recordings are freed of noise, by which engine, and when.

    Of the project's own recordings the noisy and rumbling ones lie below 22 dB or 2.4 of predicted quality and gain 0.7
    to 1.4 of it; the clean ones lie above 3.0 and would gain 0.0 to 0.3, some at the cost of their SNR.
    """

    mode: str = "off"
    """`auto`: where SNR or predicted quality ask for it; `on`: every recording is tried."""
    engine: str = "rnnoise"
    most_snr_db: float = 25.0
    """`auto` tries a recording below this …"""
    most_quality: float = 2.6
    """… or below this predicted quality, where a quality model is configured."""
    least_gain: float = 0.2
    """Of predicted quality; what gains less, or loses SNR, is left as it was."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"flow.separation.mode: expected one of {', '.join(MODES)}, got {self.mode!r}")
        if self.engine not in SEPARATORS:
            raise ValueError(f"flow.separation.engine: expected one of {', '.join(SEPARATORS)}, got {self.engine!r}")


@dataclass(frozen=True)
class SeparateModels:
    separator: Separator
    quality: QualityModel | None


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Numbers of a whole recording; None where there is none."""

    snr_db: float | None
    quality: float | None


@dataclass(frozen=True, kw_only=True)
class SeparateSpeech(Stage[LevelledRecording, LevelledRecording]):
    """One level Recording in, the same out, with or without its noise, as level as before.

    Its Treatment says the numbers before and after, and the engine where its result was kept. Rejects nothing.
    """

    name = "separate"
    config: SeparationConfig = field(default_factory=SeparationConfig)
    target_lufs: float = -16.0
    ceiling_db: float = -1.0
    engines: EngineConfig = field(default_factory=EngineConfig)

    def load(self) -> SeparateModels:
        return SeparateModels(load_separator(self.config.engine), load_quality(self.engines, windows=_QUALITY_WINDOWS))

    def process(self, row: LevelledRecording, model: SeparateModels) -> Iterator[LevelledRecording]:
        assert row.treatment is not None, "normalise says what it did"
        before = _measured(row.wave, model.quality)
        treatment = replace(row.treatment, snr_before_db=before.snr_db, quality_before=before.quality)
        if self.config.mode != "on" and not self._asks(before):
            yield replace(row, treatment=treatment)
            return
        wave = model.separator.separate(row.wave, RATE_HZ)
        peak_db, loudness = true_peak_db(wave, RATE_HZ), loudness_lufs(wave, RATE_HZ)
        if loudness is None:  # nothing is left that could be speech
            yield replace(row, treatment=treatment)
            return
        gain_db = gain_to_target_db(loudness, peak_db, target_lufs=self.target_lufs, ceiling_db=self.ceiling_db)
        wave = apply_gain(wave, gain_db)
        after = _measured(wave, model.quality)
        treatment = replace(treatment, snr_after_db=after.snr_db, quality_after=after.quality)
        if not self._improves(before, after):
            yield replace(row, treatment=treatment)
            return
        treatment = replace(
            treatment,
            separator=model.separator.name,
            shortfall_db=shortfall_db(loudness, gain_db, target_lufs=self.target_lufs),
        )
        yield replace(row, wave=wave, gain_db=row.gain_db + gain_db, treatment=treatment)

    def _asks(self, numbers: _Measured) -> bool:
        noisy = numbers.snr_db is not None and numbers.snr_db < self.config.most_snr_db
        return noisy or (numbers.quality is not None and numbers.quality < self.config.most_quality)

    def _improves(self, before: _Measured, after: _Measured) -> bool:
        if before.snr_db is None or after.snr_db is None or after.snr_db < before.snr_db:
            return False
        if before.quality is None or after.quality is None:
            return after.snr_db > before.snr_db
        return after.quality >= before.quality + self.config.least_gain


def _measured(wave: np.ndarray, quality: QualityModel | None) -> _Measured:
    return _Measured(snr_db=snr_db(wave, RATE_HZ), quality=quality.predict(wave, RATE_HZ) if quality else None)
