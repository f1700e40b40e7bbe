"""A user's words: read from a hostile file, found in a text, said as given, with the words around them undisturbed."""

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsv_core.text.front_end import UnspeakableText, phonemise
from gsv_core.text.lexicon import Entry, Lexicon
from gsv_core.text.symbols import SYMBOLS_V2


def lexicon(*lines: str, language: str | None = None) -> Lexicon:
    return Lexicon.parse("\n".join(lines).encode(), language=language)


def said(text: str, language: str, *lines: str) -> str:
    return " ".join(phonemise(text, language, lexicon=lexicon(*lines)).phonemes)


def test_a_file_has_remarks_a_heading_and_any_line_ends():
    words = lexicon("\ufeff# ours", "word\tpronunciation\tlanguage\r", "", "重庆\tchong2 qing4\r", "GSV \t G IY1 \ten")
    assert words.entries == (
        Entry(word="GSV", pronunciation="G IY1", language="en"),
        Entry(word="重庆", pronunciation="chong2 qing4", language="zh"),
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("重庆\tchong2 qing", "line 2: 'qing' is no pinyin"),
        ("重庆\tchong2", "2 characters, its pronunciation 1 syllables"),
        ("重庆\tcung4 hing9\tyue", "'hing9' is no jyutping"),
        ("GSV\tJH IY EH1\ten", "'IY' is no ARPAbet"),
        ("橘\tta chi\tja", "'ta' is neither kana nor a Japanese phoneme"),
        ("橋\tハシ 3\tja", "cannot fall after mora 3 of 2"),
        ("橋\tッャ 1\tja", "cannot be said here"),
        ("독립\tdoklip", "'d' is no hangul syllable"),
        ("Ünal\tIY1\tde", "unknown language 'de'"),
        ("5\twu3", "name it in the third cell"),
        ("word", "expected WORD<tab>PRONUNCIATION"),
        ("a\tAH0\ten\tmore", "got 4 cells"),
        ("\tAH0", "expected WORD<tab>PRONUNCIATION"),
        ("!?\tAH0\ten", "is no word"),
        ("a\u202eb\tAH0\ten", "cannot be seen"),
        ("a\x00b\tAH0\ten", "cannot be seen"),
        (f"{'a' * 61}\tAH0", "61 characters, 60 at most"),
        (f"a\t{'AH0 ' * 200}", "at most"),
        ("NAME\tEY1", "'NAME' (en) stands in line 1 already"),
    ],
)
def test_a_wrong_line_is_named_with_its_cause(line, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        lexicon("Name\tN EY1 M", line)
    assert "line 2" in str(caught.value)
    assert str(caught.value).isprintable()


def test_files_that_are_no_lexicon(tmp_path):
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        Lexicon.parse(b"a\tAH0\n\xff\tAH0")
    with pytest.raises(ValueError, match="No such file"):
        Lexicon.read(tmp_path / "lexicon.tsv")
    with pytest.raises(ValueError, match="directory"):
        Lexicon.read(tmp_path)
    (tmp_path / "lexicon.tsv").write_bytes(b"#" * (5 << 20))
    with pytest.raises(ValueError, match="too many"):
        Lexicon.read(tmp_path / "lexicon.tsv")


@settings(deadline=None)  # the first sentence of a language loads its dictionaries
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_lexicon_or_one_line_of_complaint(data):
    complaint = ""
    words = Lexicon()
    try:
        words = Lexicon.parse(data)
    except ValueError as error:
        complaint = str(error)
    assert not complaint or "line " in complaint
    assert "\n" not in complaint
    assert Lexicon.parse(words.text.encode()) == words


_ENTRIES = st.lists(
    st.sampled_from(
        [
            "重庆\tchong2 qing4", "重庆\tcung4 hing3\tyue", "GSV\tJH IY1", "5G\twu3 ji4\tzh", "大橋\tオオハシ 0\tja",
            "橋\tハシ\tja", "독립문\t동님문", "New York\tN UW1 Y AO1 R K",
        ]
    ),
    unique=True,
)  # fmt: skip


@settings(deadline=None)  # the first sentence of a language loads its dictionaries
@given(
    _ENTRIES,
    st.text(alphabet="重庆慶GSV5 橋大독립문NewYork,。!-'s我は", max_size=40),
    st.sampled_from(["zh", "en", "ja", "auto"]),
)
def test_any_text_keeps_its_ids_in_the_inventory_and_its_alignment(lines, text, language):
    try:
        result = phonemise(text, language, lexicon=lexicon(*lines))
    except UnspeakableText:
        return
    assert all(0 <= number < len(SYMBOLS_V2) for number in result.ids)
    for span in result.spans:
        if span.phonemes_per_character:
            assert len(span.phonemes_per_character) == len(span.normal_text)
            assert sum(span.phonemes_per_character) == span.num_phonemes


@settings(deadline=None)  # the first sentence of a language loads its dictionaries
@given(_ENTRIES)
def test_the_digest_follows_the_words_and_not_the_file(lines):
    words = lexicon(*lines)
    assert lexicon("# remark", *reversed(lines)).digest == words.digest
    assert (lexicon(*lines, "ada\tEY1 D AH0").digest == words.digest) is False


def test_of_two_lexicons_the_nearer_one_counts():
    near, far = lexicon("GSV\tG IY1", "重庆\tchong2 qing4"), lexicon("gsv\tJH IY1", "Ada\tEY1 D AH0")
    assert {entry.word: entry.pronunciation for entry in near.over(far).entries} == {
        "GSV": "G IY1",
        "重庆": "chong2 qing4",
        "Ada": "EY1 D AH0",
    }
    assert near.over(None) == near
    assert not Lexicon()


def test_no_lexicon_and_an_empty_one_change_nothing():
    for text, language in (("我在重庆用5G。", "zh"), ("Hi, Anna-Lee.", "en"), ("橋を渡る。", "ja"), ("가요.", "ko")):
        assert phonemise(text, language, lexicon=Lexicon()) == phonemise(text, language)
        assert phonemise(text, language, lexicon=lexicon("Zzyzx\tZ AY1 Z IH0 K S")) == phonemise(text, language)


def test_mandarin_is_replaced_in_its_sentence():
    assert said("我爱重庆。", "zh", "重庆\tzhong4 qing1") == "w o3 AA ai4 zh ong4 q ing1 ."
    # Traditional characters are the same word; 一 before it keeps the tone its sentence gives it.
    assert (
        said("一重慶。", "zh", "重庆\tlv3 nve4") == "y i2 l v3 n ve4 ."
        or said("一重慶。", "zh", "重庆\tlv3 nve4") == "y i4 l v3 n ve4 ."
    )


def test_no_sandhi_changes_what_is_given():
    assert said("你好。", "zh") == "n i2 h ao3 ."
    assert said("你好。", "zh", "你好\tni3 hao3") == "n i3 h ao3 ."


def test_the_longest_word_wins():
    lines = ("重\tzhong4", "重庆\tchong2 qing4", "重庆市\tchong1 qing1 shi1")
    assert said("重庆市重", "zh", *lines) == "ch ong1 q ing1 sh ir1 zh ong4"


def test_cantonese_has_its_own_notation():
    assert said("重慶好。", "yue", "重慶\tzung6 hing3\tyue").startswith("Yz Yung6 Yh Ying3 ")
    assert lexicon("重慶\tzung6 hing3", language="yue").entries[0].language == "yue"
    # A Mandarin entry says nothing about Cantonese.
    assert said("重慶好。", "yue", "重慶\tzhong4 qing1") == said("重慶好。", "yue")


def test_english_words_are_whole_and_of_any_case():
    entry = "Nguyen\tN W IH1 N"
    assert said("I saw NGUYEN today.", "en", entry).count("N W IH1 N") == 1
    assert said("Nguyen's cat.", "en", entry).startswith("N W IH1 N Z K")
    assert said("Nguyen’s cat.", "en", entry).startswith("N W IH1 N Z K")
    for other in ("Nguyens came.", "Nguyen'll come.", "O'Nguyen came.", "Nguyen’d come.", "Nguyen2 came."):
        assert said(other, "en", entry) == said(other, "en")
    assert said("O’Nguyen came.", "en", "O'Nguyen\tOW1").startswith("OW1 K")
    assert said("I like New York, too.", "en", "New York\tN UW1").split(" ")[4:7] == ["N", "UW1", ","]
    assert said("GSV-fleet.", "en", "GSV\tG IY1") == "G IY1 F L IY1 T ."


def test_a_borrowed_word_is_of_the_language_around_it():
    both = ("GSV\tJH IY1", "GSV\tji1 ai1\tzh", "GSV\tジー\tja")
    assert said("用GSV做。", "zh", *both) == "y ong4 j i1 AA ai1 z uo4 ."
    assert "JH IY1" in said("我说 I use GSV daily。", "zh", *both)
    assert said("GSVは便利。", "auto", *both) == said("ジーは便利。", "ja")
    aligned = phonemise("穿T恤。", "zh", lexicon=lexicon("T恤\tti4 xu1"))
    assert (aligned.normal_text, aligned.phonemes_per_character) == ("穿T恤.", (2, 2, 2, 1))


def test_japanese_kana_is_read_in_its_sentence_and_an_accent_is_kept():
    assert said("重慶に行く。", "ja", "重慶\tジュウケイ\tja") == said("ジュウケイに行く。", "ja")
    assert said("橋だ。", "ja", "橋\tハシ 1\tja").startswith("h a ] sh i ")
    assert said("橋だ。", "ja", "橋\tハシ 2\tja").startswith("h a [ sh i ")
    # Where the last mora has the accent the particle is low, as Open JTalk has it by itself.
    assert said("橋が。", "ja", "橋\tハシ 2\tja") == said("橋が。", "ja") == "h a [ sh i ] g a ."
    assert said("橋、が。", "ja", "橋\tハシ 2\tja").startswith("h a [ sh i , ")
    assert said("橋大工。", "ja", "橋\tハシ 0\tja").startswith("h a [ sh i UNK d a ")
    assert said("橘さん。", "ja", "橘\tt a [ ch i b a n a\tja").startswith("t a [ ch i b a n a s a ")
    assert said("今日、橋", "ja", "橋\tキャッチャー 1\tja").endswith(", ky a ] cl ch a a")


def test_korean_sounds_keep_their_liaison():
    assert said("독립문이 크다.", "ko", "독립문\t동님문") == said("동님문이 크다.", "ko")


def test_only_what_can_matter_is_part_of_a_text():
    words = lexicon("重庆\tchong2 qing4", "二百\ter4 bai3", "GSV\tJH IY1", "New York\tN UW1", "橋\tハシ\tja")

    def part(text: str) -> list[str]:
        return [entry.word for entry in words.part_for(text).entries]

    assert part("我在重慶。") == ["重庆"]
    assert part("gsv in New\nYork") == ["GSV", "New York"]
    assert part("no such word") == []
    assert part("200 m") == ["二百", "重庆"]  # the reader will write characters that nobody wrote


@settings(deadline=None)  # the first sentence of a language loads its dictionaries
@given(_ENTRIES, st.sampled_from(["我在重慶用5G。", "GSV is 5 m", "橋。", "독립문", "200个", "hello"]))
def test_what_is_no_part_of_a_text_does_not_change_how_it_is_said(lines, text):
    words = lexicon(*lines)
    language = "auto" if "독" in text else "zh"
    assert phonemise(text, language, lexicon=words) == phonemise(text, language, lexicon=words.part_for(text))


def test_a_large_lexicon_and_a_long_text_take_linear_time():
    letters = [chr(0x4E00 + index) for index in range(3000)]
    words = lexicon(*(f"{a}{b}x\tyi1\tzh" for a, b in pairwise(letters)), "Zed\tZ EH1 D")
    from gsv_core.text.language_spans import Span

    text = "".join(letters) * 3 + "Zed " * 5000
    words.find((Span("zh", text),), "zh")
    began = time.process_time()
    words.find((Span("zh", text),), "zh")
    assert time.process_time() - began < 1.0
