"""What a language's front end answers with: one stretch of text of one language as phonemes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A text as it is spoken.

    `phonemes_per_character` has one entry per character of `normal_text` where the language keeps that alignment
    (zh, yue) and is empty elsewhere. `dropped` are the characters that ought to be heard and are not.
    """

    normal_text: str
    phonemes: tuple[str, ...]
    phonemes_per_character: tuple[int, ...] = ()
    dropped: str = ""

    def __post_init__(self) -> None:
        counts = self.phonemes_per_character
        assert not counts or (len(counts) == len(self.normal_text) and sum(counts) == len(self.phonemes))
