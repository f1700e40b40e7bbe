"""The stored tables are what the sources give: a part of each is made again and compared."""

import pytest

from gsv_core.text.coverage import frequencies
from gsv_core.text.coverage_tables import table_of


def distance(one: dict[str, int], other: dict[str, int]) -> float:
    """Half the sum of the differences of two tables, as a share: 0 the same, 1 nothing in common."""
    return sum(abs(one.get(unit, 0) - other.get(unit, 0)) for unit in {*one, *other}) / 2_000_000


@pytest.mark.parametrize(
    ("language", "words", "phonemes", "pairs"),
    [("en", 30_000, 0.01, 0.01), ("zh", 2000, 0.08, 0.25), ("yue", 2000, 0.08, 0.25)],
)
def test_counted_words_give_the_stored_table(language, words, phonemes, pairs):
    again, stored = table_of(language, words), frequencies(language)
    assert distance(again["phonemes"], stored["phonemes"]) <= phonemes
    assert distance(again["tones"], stored["tones"]) <= 2 * phonemes
    assert distance(again["pairs"], stored["pairs"]) <= pairs


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_prose_gives_nine_tenths_of_the_stored_table(language):
    again, stored = table_of(language, 500), frequencies(language)
    assert distance(again["phonemes"], stored["phonemes"]) < 0.02
    assert distance(again["pairs"], stored["pairs"]) < 0.05
