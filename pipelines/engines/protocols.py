"""What the flow asks of a third-party model: five small Protocols and the records they answer with.

An engine takes a mono float32 wave at any rate and resamples for itself. Its `name` says which model answered, so that
numbers of two engines are never mixed. Loading happens in the engine's own constructor, once per actor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from pipelines.rows import Word

WITHOUT_BLANKS = frozenset({"zh", "ja", "yue"})
"""Languages that do not divide their words by blanks."""


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


def moved(heard: Recognition, samples: int) -> Recognition:
    """What was heard in a part of a wave that starts at `samples`, placed in the whole."""
    words = tuple(replace(word, start_sample=word.start_sample + samples) for word in heard.words)
    return replace(heard, words=words)


def written(tokens: Sequence[str], language: str) -> str:
    """Words as a line of text. Chinese and Japanese have no blanks, except between two words in Latin letters."""
    if language not in WITHOUT_BLANKS:
        return " ".join(tokens)
    text = ""
    for token in tokens:
        latin = text[-1:].isascii() and text[-1:].isalnum() and token[:1].isascii() and token[:1].isalnum()
        text += f" {token}" if latin else token
    return text


class Recogniser(Protocol):
    """Speech to text, and the times of a text that is known."""

    name: str

    def speaks(self, language: str | None) -> bool:
        """Whether a wave in this language (None: unknown) can be recognised."""
        ...

    def transcribe(self, wave: np.ndarray, rate_hz: int, language: str | None) -> Recognition:
        """`wave` (T,) float32 in [-1, 1]; words in samples of `wave`. Silence gives an empty text."""
        ...

    def transcribe_clips(
        self, wave: np.ndarray, rate_hz: int, clips: Sequence[Span], language: str | None
    ) -> list[Recognition]:
        """One Recognition for each of `clips`, spans of one Recording's `wave` in order of time.

        Words are in samples of `wave`. Neighbouring clips may be heard together, so a word may reach over the edge of
        the clip it is listed with; clips of other Recordings change nothing. The language, where unknown, is one.
        """
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


class Separator(Protocol):
    """A wave to the speech in it, without noise or music."""

    name: str

    def separate(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        """`wave` (T,) -> (T,) at the same rate, nothing moved in time."""
        ...


class VoiceActivity(Protocol):
    """Where somebody speaks."""

    name: str

    def speech(self, wave: np.ndarray, rate_hz: int) -> list[Span]:
        """Speech spans of `wave` (T,), disjoint, in order, in samples of `wave`."""
        ...
