import json

import pytest

from gsv_core.text.cantonese import read, spell
from tests.shared import shared_path


def phonemes(text: str) -> str:
    return " ".join(read(text).phonemes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你食咗飯未呀？", "Yn Yei5 Ys Yik6 Yz Yo2 Yf Yaan6 Ym Yei6 Yaa Ya3 ?"),
        ("屋", "Yuk Yk1"),
        ("五", "Yng Yg5"),
        ("唔該", "Ym Ym4 Yg Yoi1"),
        ("嗯", "Yng Yg6"),
        ("乜話？！", "Ym Yat1 Yw Yaa6 ? !"),
    ],
)
def test_readings_and_the_peculiar_cut(text, expected):
    assert phonemes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # upstream deletes everything outside 4E00-9FA5
        ("好食㗎", "Yh You2 Ys Yik6 Yg Yaa3"),
        # upstream says the Mandarin 幺
        ("91", "Yg Yau2 Ys Yap6 Yj Yat1"),
        ("4,599蚊", "Ys Yei3 Yc Yin1 Yng Yg5 Yb Yaak3 Yg Yau2 Ys Yap6 Yg Yau2 Ym Yan1"),
        # upstream deletes the line break
        ("一\n二", "Yj Yat1 . Yj Yi6"),
        # two syllables in one character are UNK upstream
        ("卅", "Ys Yaa1 Yaa Ya6"),
        # 盎 ong3 has no symbols, ngong3 has, and is said as often
        ("盎", "Yng Yong3"),
    ],
)
def test_better_than_upstream(text, expected):
    assert phonemes(text) == expected


def test_alignment_counts_two_syllables_of_one_character():
    assert read("卅蚊").phonemes_per_character == (4, 2)


def test_every_recorded_syllable_is_spelled_as_recorded_or_spoken_with_ng():
    record = json.loads(shared_path("golden/text/pinyin_map.json").read_text(encoding="utf-8"))["jyutping"]["syllables"]
    different = {syllable: spell(syllable) for syllable, pair in record.items() if list(spell(syllable)) != pair}
    # The seven that have no symbols of their own.
    assert set(different) == {"aang1", "ang1", "ap1", "ong1", "ong2", "ong3", "ung3"}
    assert all(first == "Yng" for first, _ in different.values())
