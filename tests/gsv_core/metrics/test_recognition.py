from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsv_core.metrics.recognition import character_error_rate, edit_distance, matching_pairs, word_error_rate


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language", "expected"),
    [
        ("Hello, World!", "hello world", "en", 0.0),
        ("Hello, World!", "hello word", "en", 1 / 10),
        ("Don’t stop", "don't stop", "en", 0.0),
        ("你好，世界。", "你好世介", "zh", 1 / 4),
        ("ＡＢＣ ｶﾞｲﾄﾞ", "abc ガイド", "ja", 0.0),
        ("안녕 하세요", "안녕하세요", "ko", 0.0),
        ("café", "cafe", "en", 1 / 4),
        ("ab", "", "en", 1.0),
        ("ab", "xyzwv", "en", 2.5),
    ],
)
def test_characters(reference, hypothesis, language, expected):
    assert character_error_rate(reference, hypothesis, language) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language", "expected"),
    [
        ("the cat sat", "The cat, sat!", "en", 0.0),
        ("the cat sat", "the hat sat down", "en", 2 / 3),
        ("Don't stop", "dont stop", "en", 1 / 2),
        ("你好世界", "你好 世介", "zh", 1 / 4),
        ("안녕 하세요", "안녕하세요", "ko", 1.0),
    ],
)
def test_words(reference, hypothesis, language, expected):
    assert word_error_rate(reference, hypothesis, language) == pytest.approx(expected)


def test_a_reference_without_letters_cannot_be_scored():
    with pytest.raises(ValueError, match="no letter or digit"):
        character_error_rate("…!", "hello", "en")


def _distance_by_definition(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        _distance_by_definition(a[1:], b) + 1,
        _distance_by_definition(a, b[1:]) + 1,
        _distance_by_definition(a[1:], b[1:]) + (a[0] != b[0]),
    )


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_is_levenshtein_s(a, b):
    assert edit_distance(a, b) == _distance_by_definition(a, b)


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_matching_pairs_lie_on_a_cheapest_path(a, b):
    pairs = matching_pairs(a, b)
    assert all(a[row] == b[column] for row, column in pairs)
    ends = [(-1, -1), *pairs, (len(a), len(b))]
    gaps = [(right[0] - left[0] - 1, right[1] - left[1] - 1) for left, right in pairwise(ends)]
    assert all(min(gap) >= 0 for gap in gaps)
    assert sum(max(gap) for gap in gaps) == edit_distance(a, b)
