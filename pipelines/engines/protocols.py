"""What the flow asks of a third-party model: four small Protocols and the records they answer with.

An engine takes a mono float32 wave at any rate and resamples for itself. Its `name` says which model answered, so that
numbers of two engines are never mixed. Loading happens in the engine's own constructor, once per actor.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipelines.rows import Word


class AlignmentError(ValueError):
    """The text does not fit the wave, or the engine cannot align this language."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of a wave, in samples of that wave."""

    start_sample: int
    num_samples: int

    @property
    def end_sample(self) -> int:
        return self.start_sample + self.num_samples


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """What a recogniser heard. Probabilities are in [0, 1]; None where the engine has no such number."""

    text: str
    language: str
    words: tuple[Word, ...] = ()
    confidence: float | None = None
    language_probability: float | None = None
    no_speech_probability: float | None = None


class Recogniser(Protocol):
    """Speech to text, and the times of a text that is known."""

    name: str

    def speaks(self, language: str | None) -> bool:
        """Whether a wave in this language (None: unknown) can be recognised."""
        ...

    def transcribe(self, wave: np.ndarray, rate_hz: int, language: str | None) -> Recognition:
        """`wave` (T,) float32 in [-1, 1]; words in samples of `wave`. Silence gives an empty text."""
        ...

    def align(self, wave: np.ndarray, rate_hz: int, text: str, language: str) -> tuple[Word, ...]:
        """Times of the words of `text`, one entry per whitespace-separated word, in order.

        Raises:
            AlignmentError: no alignment was found.
        """
        ...


class SpeakerVerifier(Protocol):
    """A wave to a vector that says who speaks."""

    name: str
    width: int

    def embed(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        """`wave` (T,) -> (width,) float32 of unit length."""
        ...


class QualityModel(Protocol):
    """Predicted opinion of listeners on the 1 to 5 scale; higher is better."""

    name: str

    def predict(self, wave: np.ndarray, rate_hz: int) -> float: ...


class VoiceActivity(Protocol):
    """Where somebody speaks."""

    name: str

    def speech(self, wave: np.ndarray, rate_hz: int) -> list[Span]:
        """Speech spans of `wave` (T,), disjoint, in order, in samples of `wave`."""
        ...
