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
_DIAGONAL, _UP, _LEFT = range(3)
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})


def character_error_rate(reference: str, hypothesis: str, language: str) -> float:
    """Edits per character of the reference, blanks not counted: 0 is perfect, 1 is as bad as silence.

    Raises:
        ValueError: the reference has no letter or digit, so nothing could be got wrong.
    """
    expected, heard = ("".join(words_of(text, language)) for text in (reference, hypothesis))
    return _rate(expected, heard, reference)


def word_error_rate(reference: str, hypothesis: str, language: str) -> float:
    """Edits per word of the reference; in Chinese, Cantonese and Japanese, written without blanks, per character.

    Raises:
        ValueError: the reference has no letter or digit.
    """
    return _rate(words_of(reference, language), words_of(hypothesis, language), reference)


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """The fewest insertions, deletions and substitutions that turn one into the other."""
    return int(_last_row(reference, hypothesis, None)[-1])


def matching_pairs(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> list[tuple[int, int]]:
    """(index in the reference, index in the hypothesis) of the equal items along a cheapest edit path, in order.

    Memory grows with the product of both lengths: one byte a cell.
    """
    diagonal = np.zeros((len(reference), len(hypothesis) + 1), dtype=np.uint8)
    _last_row(reference, hypothesis, diagonal)
    row, column, pairs = len(reference), len(hypothesis), []
    while row and column:
        step = diagonal[row - 1, column]
        if step == _DIAGONAL:
            row, column = row - 1, column - 1
            if reference[row] == hypothesis[column]:
                pairs.append((row, column))
        elif step == _UP:
            row -= 1
        else:
            column -= 1
    return pairs[::-1]


def words_of(text: str, language: str) -> list[str]:
    """The words that count of a text, in the form they are compared in; characters where words have no blanks."""
    folded = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold()
    spelled = "".join(letter if letter in _IN_WORD or _is_spoken(letter) else " " for letter in folded)
    words = [word for word in (word.strip(_IN_WORD) for word in spelled.split()) if word]
    return list("".join(words)) if language in _WITHOUT_BLANKS else words


def _last_row(reference: Sequence[Hashable], hypothesis: Sequence[Hashable], steps: np.ndarray | None) -> np.ndarray:
    """Distances of the whole reference to each beginning of the hypothesis; fills in the `steps` that led there."""
    codes: dict[Hashable, int] = {}
    rows = np.array([codes.setdefault(item, len(codes)) for item in reference], dtype=np.int64)
    columns = np.array([codes.setdefault(item, len(codes)) for item in hypothesis], dtype=np.int64)
    offsets = np.arange(len(columns) + 1)
    distances = offsets.copy()
    for index, item in enumerate(rows, start=1):
        # From above (a deletion) or from the diagonal (a match or a substitution) ...
        above, across = distances + 1, np.concatenate([[index], distances[:-1] + (columns != item)])
        best = np.minimum(above, across)
        # ... or from the left (an insertion), which costs one a column: a running minimum once that cost is taken out.
        distances = np.minimum.accumulate(best - offsets) + offsets
        if steps is not None:
            steps[index - 1] = np.where(distances == across, _DIAGONAL, np.where(distances == above, _UP, _LEFT))
    return distances


def _rate(reference: Sequence[Hashable], hypothesis: Sequence[Hashable], text: str) -> float:
    if not reference:
        raise ValueError(f"error rate: the reference {text!r} holds no letter or digit to compare with")
    return edit_distance(reference, hypothesis) / len(reference)


def _is_spoken(letter: str) -> bool:
    """Letters, digits and the marks that belong to them (accents, vowel signs, the sign of a long vowel)."""
    return unicodedata.category(letter)[0] in "LNM"
