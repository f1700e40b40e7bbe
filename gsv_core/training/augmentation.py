"""Clips a little different in every step, for voices of which there is hardly any speech.

Only what leaves a clip a true example is varied, and only in the acoustic phase:

- speed: the wave is stretched in time, its pitch and timbre kept (WSOLA; Verhelst and Roelands 1993), and the content
  encoder listens to the result, so that content, spectrogram and wave belong together frame by frame. Stretching stored
  content along with the wave would pair it with what no encoder heard; changing the speed by resampling would change
  the voice itself.
- level: content features hardly know it, and wave and spectrogram change together.
- noise: is added to what shows the timbre and never to what is to be spoken, so that a voice is recognised through
  noise and does not learn to make it.

What a clip becomes follows from the seed, the voice, the step, the clip and the purpose. Shapes: B batch, T samples,
F bins, L frames.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gsv_core.checkpoints.base import BaseModel
from gsv_core.features import content_gain, encoder_wave, tokens_of
from gsv_core.training.batches import TrainingItem
from gsv_core.training.draws import generator_of
from gsv_core.training.schedules import PhasePlan

SPEEDS = (0.94, 1.0, 1.06)
LEVEL_DB = 3.0
"""Up and down; a clip is never made louder than full scale."""
NOISE_DB = (25.0, 45.0)
"""Of white noise below the clip."""

_WINDOW = 1024
"""Samples at 32 kHz: a few periods of a low voice."""
_HOP = _WINDOW // 2
_REACH = 320
"""Samples to either side within which a piece goes on most smoothly."""


class Augmentation:
    """Varies the clips of one voice; what an encoder has heard once is kept."""

    def __init__(self, base: BaseModel, plan: PhasePlan, *, voice: str, phase: str) -> None:
        self._base = base
        self._own = (plan.seed, voice, phase)
        self._stretched: dict[tuple[str, float], TrainingItem] = {}

    def varied(self, item: TrainingItem, step: int) -> TrainingItem:
        """`item` as it is heard in step number `step`."""
        draw = generator_of(*self._own, step, item.clip_id, "augment")
        speed = SPEEDS[int(torch.randint(len(SPEEDS), (), generator=draw))]
        level_db = LEVEL_DB * (2 * float(torch.rand((), generator=draw)) - 1)
        item = self._at_speed(item, speed)
        peak = float(item.wave.abs().max())
        gain = min(10 ** (level_db / 20), max(1.0, 1 / peak) if peak else 1.0)
        return replace(item, wave=item.wave * gain)

    def noisy(self, spectrogram: Tensor, lengths: Tensor, clip_ids: Sequence[str], step: int) -> Tensor:
        """Magnitudes (B, F, L) of `lengths` (B,) with white noise added to what they are of; nothing in the padding."""
        noisy = spectrogram.clone()
        for row, length, clip_id in zip(noisy, lengths.tolist(), clip_ids, strict=True):
            draw = generator_of(*self._own, step, clip_id, "noise of the reference")
            below_db = NOISE_DB[0] + (NOISE_DB[1] - NOISE_DB[0]) * float(torch.rand((), generator=draw))
            heard = row[:, :length]
            # White noise has the same power in every bin; half of it in the phase of the clip, half across it.
            deviation = (heard.square().mean() / 2).sqrt() * 10 ** (-below_db / 20)
            along, across = deviation * torch.randn(2, *heard.shape, generator=draw)
            row[:, :length] = torch.hypot(heard + along, across)
        return noisy

    def _at_speed(self, item: TrainingItem, speed: float) -> TrainingItem:
        if speed == 1.0:
            return item
        known = self._stretched.get((item.clip_id, speed))
        if known is None:
            wave = stretched(item.wave.numpy(), speed)
            gain = content_gain(self._base, wave, loud=True)
            content = self._base.content_encoder.encode(encoder_wave(wave) * gain).half()
            known = replace(item, wave=torch.from_numpy(wave), content=content, tokens=tokens_of(self._base, content))
            self._stretched[item.clip_id, speed] = known
        return known


def stretched(wave: np.ndarray, speed: float) -> np.ndarray:
    """(T,) float32 -> (T / speed,): the same voice at the same pitch, faster where `speed` is above 1.

    Overlapping pieces are laid side by side at the new pace, each taken from where it best continues the one before.
    """
    length = round(len(wave) / speed)
    around = _WINDOW + _REACH
    padded = np.pad(wave.astype(np.float32), (around, around + _WINDOW))
    fade = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)).astype(np.float32)
    out = np.zeros(length + 2 * _WINDOW, dtype=np.float32)
    start = around - _HOP
    for place in range(0, length + _HOP, _HOP):  # the output begins half a window late, where the fades add up to one
        if place:
            expected = padded[start + _HOP : start + _HOP + _WINDOW]
            first = min(around - _HOP + round(place * speed), len(padded) - _WINDOW - _REACH) - _REACH
            start = first + _best_match(padded[first : first + 2 * _REACH + _WINDOW], expected)
        out[place : place + _WINDOW] += fade * padded[start : start + _WINDOW]
    return out[_HOP : _HOP + length].copy()


def _best_match(region: np.ndarray, expected: np.ndarray) -> int:
    """Where in `region` a piece lies that is most like `expected`: the highest normalised correlation."""
    likeness = np.correlate(region, expected, mode="valid")
    energy = np.concatenate([[0.0], np.cumsum(region.astype(np.float64) ** 2)])
    power = energy[len(expected) :] - energy[: len(likeness)]
    return int(np.argmax(likeness / np.sqrt(np.maximum(power, 1e-9))))
