"""Normalise: decode each Recording and bring it to 32 kHz, mono, one loudness.

Loudness after ITU-R BS.1770-4; resampling by soxr. Axes: T samples, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from gsv_core.audio.levels import apply_gain, gain_to_target_db, loudness_lufs, remove_dc, shortfall_db, true_peak_db
from gsv_core.audio.resample import resample
from pipelines.engines.decoder import DecodeLimits, UndecodableError, decode
from pipelines.rows import RATE_HZ, LevelledRecording, Recording, Rejection
from pipelines.stage import Stage

_SILENT_PEAK = 10 ** (-70 / 20)
"""A recording that never rises above -70 dBFS holds nothing to level: dither, or a switched-off microphone."""
_QUIET_CHANNEL_DB = 20.0
"""A channel this far below the loudest carries no speech of its own and would only add noise to a mixdown."""


@dataclass(frozen=True, kw_only=True)
class NormaliseRecordings(Stage[Recording, LevelledRecording]):
    """One Recording in, its level copy out: gain = min(target - loudness, ceiling - true peak), no limiter.

    Rejects:
        empty, unreadable, no_audio, too_long, too_many_channels: found while decoding.
        silent: nothing above -70 dBFS, or no loudness at all.
    """

    name = "normalise"
    target_lufs: float = -16.0
    ceiling_db: float = -1.0
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    def __post_init__(self) -> None:
        if not -40 <= self.target_lufs < 0 or self.ceiling_db > 0:
            raise ValueError(
                f"normalise: need -40 <= target_lufs < 0 and ceiling_db <= 0, got {self.target_lufs}, {self.ceiling_db}"
            )

    def process(self, row: Recording, model: None) -> Iterator[LevelledRecording | Rejection]:  # noqa: ARG002
        try:
            decoded = decode(row.uri, limits=self.limits)
        except UndecodableError as error:
            yield self._rejection(row, error.reason, error.detail)
            return
        mono, choice = to_mono(remove_dc(decoded.wave))
        wave = resample(mono, decoded.rate_hz, RATE_HZ)
        row = replace(
            row,
            duration_samples=len(wave),
            rate_hz=decoded.rate_hz,
            channels=decoded.channels,
            codec=decoded.codec,
        )
        peak = float(np.abs(wave).max(initial=0.0))
        if peak < _SILENT_PEAK:
            yield self._rejection(row, "silent", "no sample above -70 dBFS")
            return
        loudness = loudness_lufs(wave, RATE_HZ)
        if loudness is None:
            # Under 0.4 s, or only below the gate: too little to level by loudness, so the peak decides.
            loudness = self.target_lufs
        gain_db = gain_to_target_db(
            loudness, true_peak_db(wave, RATE_HZ), target_lufs=self.target_lufs, ceiling_db=self.ceiling_db
        )
        notes = [*decoded.warnings, *choice]
        if missing := shortfall_db(loudness, gain_db, target_lufs=self.target_lufs):
            notes.append(f"{missing:.1f} LU below {self.target_lufs:g} LUFS: its peaks leave no more room")
        yield LevelledRecording(recording=row, wave=apply_gain(wave, gain_db), gain_db=gain_db, warnings=tuple(notes))

    def _rejection(self, row: Recording, reason: str, detail: str) -> Rejection:
        return Rejection(
            row_id=row.recording_id,
            voice=row.voice,
            uri=row.uri,
            stage=self.name,
            reason=reason,
            detail=detail,
            start_sample=0 if reason == "silent" else None,
            num_samples=row.duration_samples if reason == "silent" else None,
        )


def to_mono(wave: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(T, C) -> (T,): the mean of the channels that carry sound, and a note where that is not all of them.

    A dead or far quieter channel would cost the others level (6 dB for one of two), so it is left out.
    """
    if wave.shape[1] == 1:
        return wave[:, 0], []
    levels = np.sqrt(np.mean(np.square(wave, dtype=np.float64), axis=0))
    audible = levels > levels.max(initial=0.0) * 10 ** (-_QUIET_CHANNEL_DB / 20)
    if audible.all() or not audible.any():
        return wave.mean(axis=1), []
    kept = ", ".join(str(index + 1) for index in np.flatnonzero(audible))
    return wave[:, audible].mean(axis=1), [f"used channel {kept} of {wave.shape[1]}: the others are silent"]
