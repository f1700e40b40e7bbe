"""A reference text and what a recogniser heard to an error rate; lower is better.

Both texts are brought to one form first: compatibility forms folded (full-width letters, half-width kana), case and
punctuation gone. The rate is Levenshtein's distance (insertions, deletions and substitutions count one each) over the
length of the reference, so that it may exceed 1. Languages written without blanks are compared by characters only.
"""

import unicodedata
from collections.abc import Hashable, Sequence

import numpy as np

_WITHOUT_BLANKS = frozenset({"zh", "ja", "yue"})
# Inside a word these are part of its spelling; everywhere else punctuation separates words.
_IN_WORD = "'"
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})


def character_error_rate(reference: str, hypothesis: str, language: str) -> float:
    """Edits per character of the reference, blanks not counted: 0 is perfect, 1 is as bad as silence.

    Raises:
        ValueError: the reference has no letter or digit, so nothing could be got wrong.
    """
    expected, heard = ("".join(_words(text, language)) for text in (reference, hypothesis))
    return _rate(expected, heard, reference)


def word_error_rate(reference: str, hypothesis: str, language: str) -> float:
    """Edits per word of the reference; in Chinese, Cantonese and Japanese, written without blanks, per character.

    Raises:
        ValueError: the reference has no letter or digit.
    """
    return _rate(_words(reference, language), _words(hypothesis, language), reference)


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """The fewest insertions, deletions and substitutions that turn one into the other."""
    codes: dict[Hashable, int] = {}
    rows = np.array([codes.setdefault(item, len(codes)) for item in reference], dtype=np.int64)
    columns = np.array([codes.setdefault(item, len(codes)) for item in hypothesis], dtype=np.int64)
    steps = np.arange(len(columns) + 1)
    distances = steps.copy()
    for index, item in enumerate(rows, start=1):
        # From above (a deletion) or from the diagonal (a match or a substitution) ...
        best = np.minimum(distances[1:] + 1, distances[:-1] + (columns != item))
        best = np.concatenate([[index], best])
        # ... or from the left (an insertion), which costs one a column: a running minimum once that cost is taken out.
        distances = np.minimum.accumulate(best - steps) + steps
    return int(distances[-1])


def _rate(reference: Sequence[Hashable], hypothesis: Sequence[Hashable], text: str) -> float:
    if not reference:
        raise ValueError(f"error rate: the reference {text!r} holds no letter or digit to compare with")
    return edit_distance(reference, hypothesis) / len(reference)


def _words(text: str, language: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold()
    spelled = "".join(letter if letter in _IN_WORD or _is_spoken(letter) else " " for letter in folded)
    words = [word for word in (word.strip(_IN_WORD) for word in spelled.split()) if word]
    return list("".join(words)) if language in _WITHOUT_BLANKS else words


def _is_spoken(letter: str) -> bool:
    """Letters, digits and the marks that belong to them (accents, vowel signs, the sign of a long vowel)."""
    return unicodedata.category(letter)[0] in "LNM"
