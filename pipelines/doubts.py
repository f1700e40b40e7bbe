"""Which Utterances a person should listen to: how much each number of a clip speaks against it, and the sum of that.

Every doubt lies between 0 and 1. Doubts add up like chances: what is doubtful in two ways is more so than in either.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.bounds import Bound

_FEWEST = 8
"""Clips a voice must have before one of them can be called unusual for it."""
_USUAL, _STRANGE = 2.5, 6.0
"""Standard deviations from the voice's middle where doubt begins, and where it is complete."""
_NEAR = 0.15
"""Of the way from a bound to the voice's middle: a clip nearer to the bound than that is near it."""
_WORTH_SAYING = 0.1
_WORDS = {
    "confidence": "heard with little confidence",
    "character_error_rate": "given and heard text differ",
    "language_probability": "perhaps another language",
    "phonemes_per_second": "unusual pace",
    "centroid_cosine": "perhaps another speaker",
    "speaker_consistency": "perhaps two speakers",
    "quality": "poor sound",
    "snr_db": "noisy",
}


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """How doubtful one clip is, 0 to 1, and the reasons in words, the strongest first."""

    score: float
    reasons: tuple[str, ...] = ()


def doubts(numbers: Sequence[Mapping[str, Any]], bounds: Iterable[Bound]) -> list[Doubt]:
    """One Doubt for each clip of a voice, from its numbers (name → value or None) and the bounds set to them."""
    against: list[dict[str, float]] = [{} for _ in numbers]
    for index, clip in enumerate(numbers):
        for name, doubt in (
            ("confidence", lambda value: 1.0 - value),
            ("language_probability", lambda value: 1.0 - value),
            ("character_error_rate", lambda value: value),
        ):
            if clip.get(name) is not None:
                _note(against[index], name, doubt(clip[name]))
    for name in ("phonemes_per_second", "centroid_cosine"):
        for index, distance in _distances(numbers, name):
            if name == "phonemes_per_second" or distance < 0:
                _note(against[index], name, (abs(distance) - _USUAL) / (_STRANGE - _USUAL))
    for bound in bounds:
        for index, closeness in _closeness(numbers, bound):
            _note(against[index], bound.number, closeness)
    return [_summed(found, clip) for found, clip in zip(against, numbers, strict=True)]


def _note(found: dict[str, float], name: str, doubt: float) -> None:
    if doubt > 0:
        found[name] = max(found.get(name, 0.0), min(1.0, float(doubt)))


def _values(numbers: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(index, clip[name]) for index, clip in enumerate(numbers) if clip.get(name) is not None]


def _distances(numbers: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """How many robust standard deviations each clip lies from the voice's median."""
    found = _values(numbers, name)
    if len(found) < _FEWEST:
        return []
    values = np.array([value for _, value in found])
    middle = np.median(values)
    # The 1.4826 makes it the standard deviation where values are spread normally.
    spread = 1.4826 * np.median(np.abs(values - middle))
    if spread == 0:
        return []
    return [(index, float((value - middle) / spread)) for index, value in found]


def _closeness(numbers: Sequence[Mapping[str, Any]], bound: Bound) -> list[tuple[int, float]]:
    """1 at and beyond the bound, 0 from `_NEAR` of the way to the voice's middle on."""
    found = _values(numbers, bound.number)
    if bound.limit is None or not found:
        return []
    way = abs(float(np.median([value for _, value in found])) - bound.limit)
    sign = 1 if bound.name.startswith("least_") else -1
    inside = [(index, sign * (value - bound.limit)) for index, value in found]
    return [(index, 1.0 if room <= 0 else 1.0 - room / (_NEAR * way) if way else 0.0) for index, room in inside]


def _summed(found: Mapping[str, float], clip: Mapping[str, Any]) -> Doubt:
    ordered = sorted(found, key=lambda name: (-found[name], name))
    left = 1.0
    for name in ordered:
        left *= 1.0 - found[name]
    reasons = tuple(
        f"{_WORDS.get(name, name.replace('_', ' '))} ({clip[name]:.3g})"
        for name in ordered
        if found[name] > _WORTH_SAYING
    )
    return Doubt(score=round(1.0 - left, 6), reasons=reasons)
