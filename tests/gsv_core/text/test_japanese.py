import pytest

from gsv_core.text.japanese import PHRASE_END, engines, normalise, read


def phones(text: str) -> str:
    """Without accents, which differ between the dictionaries of Open JTalk's forks."""
    return " ".join(phoneme for phoneme in read(text).phonemes if phoneme not in ("[", "]", PHRASE_END))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("こんにちは", "k o N n i ch i w a"),
        ("今日はいい天気ですね。", "ky o o w a i i t e N k i d e s u n e ."),
        ("学校へ行って、切符を買った", "g a cl k o o e i cl t e , k i cl p u o k a cl t a"),
        ("靴下", "k u ts u sh i t a"),  # devoiced vowels as plain ones
        ("半角ｶﾀｶﾅ", "h a N k a k u k a t a k a n a"),
        ("100％", "hy a k u p a a s e N t o"),
    ],
)
def test_readings(text, expected):
    assert phones(text) == expected


def test_pitch_rises_and_falls():
    marks = [phoneme for phoneme in read("雨の日に飴をなめる").phonemes if phoneme in ("[", "]", PHRASE_END)]
    assert marks.count(PHRASE_END) >= 2
    assert {"[", "]"} <= set(marks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # upstream: UNK for each bracket, emoji and wave
        ("「はい」", "h a i"),
        ("楽しい😀。", "t a n o sh i i ."),
        # upstream: the padding symbol
        ("東京・大阪", "t o o ky o o , o o s a k a"),
        # upstream: UNK
        ("100%", "hy a k u p a a s e N t o"),
        ("すごーい～！やったー♪", "s u g o o i … ! y a cl t a a"),
        ("（かっこ）【見出し】", "k a cl k o m i d a sh i"),
        # upstream: the padding symbol where Open JTalk knows no word
        ("中国語で你好と", "ch u u g o k u g o d e , t o"),
        # upstream makes the sign a dash that nobody hears
        ("気温は-3度", "k i o N w a m a i n a s u s a N d o"),
        # upstream cuts the number at its comma
        ("2,980円", "n i s e N ky u u hy a k u h a ch i j u u e N"),
    ],
)
def test_better_than_upstream(text, expected):
    assert phones(text) == expected


def test_numbers_stay_whole():
    assert normalise("1,250万人") == "1250万人"
    assert "t e N" in phones("3.14")


def test_marks_alone_write_no_warning(capfd):
    assert read("、。！？ー").phonemes[:1] == (",",)
    assert capfd.readouterr() == ("", "")


def test_another_dictionary_is_named(monkeypatch):
    monkeypatch.delenv("OPEN_JTALK_DICT_DIR", raising=False)
    assert engines()["open_jtalk_dictionary"] == "packaged"
    monkeypatch.setenv("OPEN_JTALK_DICT_DIR", "/somewhere/naist-jdic")
    assert engines()["open_jtalk_dictionary"] == "naist-jdic"


def test_words_open_jtalk_does_not_know_are_reported():
    assert read("中国語で你好と").dropped == "你好"


def test_other_scripts_are_reported():
    assert read("はい привет").dropped == "привет"
