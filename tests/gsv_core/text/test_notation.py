"""What people write down is spelled as the languages' own readers spell it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsv_core.text.cantonese import read as read_cantonese
from gsv_core.text.japanese import read as read_japanese
from gsv_core.text.mandarin import read as read_mandarin
from gsv_core.text.notation import (
    check_hangul,
    morae,
    shown,
    spell_arpabet,
    spell_japanese,
    spell_jyutping,
    spell_pinyin,
)
from gsv_core.text.symbols import SYMBOLS_V2

PINYIN = {
    "儿": "er2", "月": "yue4", "元": "yuan2", "女": "nü3", "略": "lve4", "句": "ju4", "穷": "qiong2", "字": "zi4",
    "是": "shi4", "日": "ri4", "五": "wu3", "欧": "ou1", "阿": "a1", "饿": "e4", "有": "you3", "烟": "yan1",
    "夜": "ye4", "翁": "weng1", "水": "shui3", "九": "jiu3", "云": "yun2", "绿": "lu:4", "一": "yi1", "雪": "xue3",
}  # fmt: skip
JYUTPING = {"屋": "uk1", "五": "ng5", "愛": "oi3", "香": "hoeng1", "水": "seoi2", "月": "jyut6", "國": "gwok3"}


@pytest.mark.parametrize("character", PINYIN)
def test_pinyin(character):
    assert spell_pinyin(PINYIN[character]) == read_mandarin(character).phonemes


@pytest.mark.parametrize("character", JYUTPING)
def test_jyutping(character):
    assert spell_jyutping(JYUTPING[character]) == read_cantonese(character).phonemes


@pytest.mark.parametrize(
    "kana", ["キャベツ", "チェック", "ファッション", "シンブン", "パーティー", "フォーク", "ウォッカ"]
)
def test_kana(kana):
    phones = tuple(phone for phone in read_japanese(kana).phonemes if phone not in "[]#")
    assert tuple(phone for mora in morae(kana) for phone in mora) == phones
    assert morae("きゃべつ") == morae("キャベツ")


def test_an_accent_is_a_rise_after_the_first_mora_and_a_fall_after_the_accented_one():
    assert spell_japanese("アメガ 0") == ("a", "[", "m", "e", "g", "a")
    assert spell_japanese("アメガ 1") == ("a", "]", "m", "e", "g", "a")
    assert spell_japanese("アメガ 2") == ("a", "[", "m", "e", "]", "g", "a")
    assert spell_japanese("ハ 1") == ("h", "a")
    assert spell_japanese("a [ m e # g a") == ("a", "[", "m", "e", "#", "g", "a")


@pytest.mark.parametrize(
    ("spell", "written"),
    [
        (spell_pinyin, "chong"), (spell_pinyin, "chong6"), (spell_pinyin, "chogn2"), (spell_pinyin, "m2"),
        (spell_pinyin, "zh2"), (spell_jyutping, "hing7"), (spell_jyutping, "xing3"), (spell_jyutping, "cung"),
        (spell_arpabet, "AH"), (spell_arpabet, "SP"), (spell_arpabet, "N3"), (spell_japanese, "k x"),
        (spell_japanese, "ハシ 3"), (spell_japanese, "ャ 0"), (check_hangul, "ㄱ"), (check_hangul, "가a"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_notation_is_named(spell, written):
    with pytest.raises(ValueError, match="'") as caught:
        spell(written)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_spelled_in_symbols_or_refused(written):
    for spell in (spell_pinyin, spell_jyutping, spell_arpabet, spell_japanese):
        try:
            phonemes = spell(written)
        except ValueError:
            continue
        assert set(phonemes) <= {*SYMBOLS_V2, "#"}


def test_messages_hold_nothing_a_terminal_would_obey():
    assert shown("\x1b[31m") == "'\\x1b[31m'"
    assert len(shown("a" * 1000)) < 50
