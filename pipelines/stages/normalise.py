"""Normalise: decode each Recording and bring it to 32 kHz, mono, one loudness.

Loudness after ITU-R BS.1770-4; resampling by soxr. Axes: T samples, C channels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gsv_core.audio.levels import (
    apply_gain,
    channel_means,
    gain_to_target_db,
    loudness_lufs,
    remove_dc,
    shortfall_db,
    true_peak_db,
)
from gsv_core.audio.resample import resample
from pipelines.engines.decoder import DecodeLimits, UndecodableError, decode
from pipelines.rows import RATE_HZ, LevelledRecording, Recording, Rejection, Treatment
from pipelines.stage import Stage

_SILENT_PEAK = 10 ** (-70 / 20)
"""A recording that never rises above -70 dBFS holds nothing to level: dither, or a switched-off microphone."""
_QUIET_CHANNEL_DB = 20.0
"""A channel this far below the loudest carries no speech of its own and would only add noise to a mixdown."""
_ALIKE = 0.3
"""Channels whose speech bands correlate more than this hear the same; if less, each hears something else."""
_BAND_RATE_HZ = 8_000
_FRAME_S = 0.05
_WINDOW_FRAMES = 11
_FULL_SCALE = 0.999
_QUIET_PEAK_DB = -20.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixdown:
    """One channel made of several: (T,), the numbers of those it was made of, and notes where that was a choice."""

    wave: np.ndarray
    used: str
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class NormaliseRecordings(Stage[Recording, LevelledRecording]):
    """One Recording in, its level copy out: gain = min(target - loudness, ceiling - true peak), no limiter.

    Rejects:
        empty, unreadable, no_audio, too_long, too_many_channels: found while decoding.
        silent: nothing above -70 dBFS, or no loudness at all.
    """

    name = "normalise"
    version = 2
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
        offsets = channel_means(decoded.wave)
        mono = to_mono(remove_dc(decoded.wave, offsets), decoded.rate_hz)
        wave = resample(mono.wave, decoded.rate_hz, RATE_HZ)
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
        peak_db = true_peak_db(wave, RATE_HZ)
        measured = loudness_above_gate(wave, peak_db)
        # Under 0.4 s there is too little to level by loudness, so the peak decides.
        loudness = self.target_lufs if measured is None else measured
        gain_db = gain_to_target_db(loudness, peak_db, target_lufs=self.target_lufs, ceiling_db=self.ceiling_db)
        missing = shortfall_db(loudness, gain_db, target_lufs=self.target_lufs)
        warnings = [*decoded.warnings, *clipping_notes(decoded.wave), *mono.notes]
        if missing:
            warnings.append(f"{missing:.1f} LU below {self.target_lufs:g} LUFS: its peaks leave no more room")
        treatment = Treatment(
            source_rate_hz=decoded.rate_hz,
            source_channels=decoded.channels,
            source_codec=decoded.codec,
            channels_used=mono.used,
            dc_offset=float(np.abs(offsets).max()),
            source_lufs=measured,
            source_peak_db=peak_db,
            shortfall_db=missing,
            warnings=tuple(warnings),
        )
        yield LevelledRecording(recording=row, wave=apply_gain(wave, gain_db), gain_db=gain_db, treatment=treatment)

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


def loudness_above_gate(wave: np.ndarray, peak_db: float) -> float | None:
    """Integrated loudness in LUFS, of a very quiet recording too.

    That is measured at full scale, so that the absolute gate at -70 LUFS leaves out its silence and not its speech.
    """
    lift_db = -peak_db if peak_db < _QUIET_PEAK_DB else 0.0
    measured = loudness_lufs(apply_gain(wave, lift_db) if lift_db else wave, RATE_HZ)
    return None if measured is None else measured - lift_db


def clipping_notes(wave: np.ndarray) -> list[str]:
    """A sentence on how much of (T, C) lies at full scale; none where nothing does."""
    if max(float(wave.max()), -float(wave.min())) < _FULL_SCALE:
        return []
    share = np.count_nonzero(np.abs(wave) >= _FULL_SCALE) / wave.size
    return [f"{share:.3%} of its samples are at full scale: it may be clipped"]


def to_mono(wave: np.ndarray, rate_hz: int) -> Mixdown:
    """(T, C) -> (T,): the mean of the channels that hear the same.

    A dead or far quieter channel would cost the others level (6 dB for one of two), so it is left out. Channels in
    opposite phase would cancel, so the loudest stands for both. Where each hears somebody else, as in an interview with
    a microphone each, the mix follows whoever speaks: a mean would add every other microphone's noise.
    """
    count = wave.shape[1]
    if count == 1:
        return Mixdown(wave=wave[:, 0], used="1")
    band = speech_band(wave, rate_hz)
    levels = np.sqrt(np.einsum("tc,tc->c", band, band, dtype=np.float64))
    audible = np.flatnonzero(levels > levels.max(initial=0.0) * 10 ** (-_QUIET_CHANNEL_DB / 20))
    if not len(audible):
        return Mixdown(wave=wave.mean(axis=1), used=_listed(range(count)))
    used = _listed(audible)
    notes = [f"used channel {used} of {count}: the others are silent"] if len(audible) < count else []
    if len(audible) == 1:
        return Mixdown(wave=wave[:, audible[0]], used=used, notes=notes)
    loudest = int(np.argmax(levels))
    alike = min(float(band[:, loudest] @ band[:, index] / (levels[loudest] * levels[index])) for index in audible)
    if alike > _ALIKE:
        mixed = wave[:, audible[0]].copy()
        for index in audible[1:]:
            mixed += wave[:, index]
        return Mixdown(wave=mixed / np.float32(len(audible)), used=used, notes=notes)
    if alike < -_ALIKE:
        notes.append(f"used channel {loudest + 1} of {count}: another is in opposite phase and would cancel it")
        return Mixdown(wave=wave[:, loudest], used=_listed([loudest]), notes=notes)
    notes.append(f"channels {used} of {count} hear different things: the mix follows the loudest of them")
    return Mixdown(wave=follow_loudest(wave[:, audible], band[:, audible]), used="loudest", notes=notes)


def speech_band(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """(T, C) at any rate -> (T', C) at about 8 kHz, loudest at 2 kHz: rumble, hum and hiss weigh little in it."""
    step = max(1, rate_hz // _BAND_RATE_HZ)
    coarse = wave[: len(wave) // step * step : step].copy()
    for offset in range(1, step):
        coarse += wave[offset : len(wave) // step * step : step]
    once = coarse[2:] - coarse[:-2]
    return once[2:] - once[:-2]


def follow_loudest(wave: np.ndarray, band: np.ndarray) -> np.ndarray:
    """(T, C) -> (T,): every channel weighted by the square of its share of the power in the half second around."""
    frame = round(_FRAME_S * _BAND_RATE_HZ)
    frames = len(band) // frame
    if not frames:
        return wave.mean(axis=1)
    power = np.square(band[: frames * frame], dtype=np.float64).reshape(frames, frame, -1).sum(axis=1)
    window = np.ones(min(_WINDOW_FRAMES, frames))
    heard = np.stack([np.convolve(column, window, mode="same") for column in power.T])
    share = np.square(heard + 1e-9 * heard.max())
    share /= share.sum(axis=0)
    frame_of_sample = (np.arange(len(wave)) + 0.5) * (len(band) / frame / len(wave)) - 0.5
    mixed = np.zeros(len(wave), dtype=np.float32)
    for channel, weight in zip(wave.T, share, strict=True):
        mixed += channel * np.interp(frame_of_sample, np.arange(frames), weight).astype(np.float32)
    return mixed


def _listed(channels: Iterable[int]) -> str:
    return ", ".join(str(index + 1) for index in channels)
