"""Audio that a page carries inside itself: FLAC or WAV bytes, kept within a budget."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gsv_core.audio.resample import resample
from pipelines.engines.decoder import decode
from pipelines.engines.flac import encode_flac

_LONGEST_S = 15.0
_RATES_HZ = (None, 24_000, 16_000)
"""Tried in this order: as it is, then lower."""


@dataclass(frozen=True, kw_only=True)
class AudioSample:
    """Something to listen to: what it is, the words in it, and the bytes of an audio file."""

    title: str
    text: str
    language: str
    data: bytes
    rate_hz: int | None = None

    @property
    def media_type(self) -> str:
        return "audio/flac" if self.data[:4] == b"fLaC" else "audio/wav"


def within_budget(samples: Sequence[AudioSample], budget_bytes: int) -> tuple[AudioSample, ...]:
    """As FLAC, all at one rate: the highest at which they fit; at the lowest, the last ones go.

    One rate for all, so that a recording and its synthesis are heard on equal terms.
    """
    waves = [_mono(sample.data) for sample in samples]
    fitting: list[AudioSample] = []
    for limit_hz in _RATES_HZ:
        fitting = [
            _encoded(sample, wave, rate_hz, limit_hz) for sample, (wave, rate_hz) in zip(samples, waves, strict=True)
        ]
        if sum(len(sample.data) for sample in fitting) <= budget_bytes:
            return tuple(fitting)
    while fitting and sum(len(sample.data) for sample in fitting) > budget_bytes:
        fitting.pop()
    return tuple(fitting)


def _mono(data: bytes) -> tuple[np.ndarray, int]:
    """(T,) float32 within [-1, 1], and its rate."""
    decoded = decode(io.BytesIO(data))
    wave = decoded.wave.mean(axis=1)[: round(_LONGEST_S * decoded.rate_hz)]
    return np.clip(np.nan_to_num(wave), -1.0, 1.0).astype(np.float32), decoded.rate_hz


def _encoded(sample: AudioSample, wave: np.ndarray, rate_hz: int, limit_hz: int | None) -> AudioSample:
    if limit_hz is not None and rate_hz > limit_hz:
        # Resampling may overshoot full scale by a little.
        wave, rate_hz = np.clip(resample(wave, rate_hz, limit_hz), -1.0, 1.0), limit_hz
    return replace(sample, data=encode_flac(wave, rate_hz), rate_hz=rate_hz)
