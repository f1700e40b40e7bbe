from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsv_core.text.language_spans import MODES, split_languages


def spans(text: str, mode: str, answer: str = "zh") -> list[tuple[str, str]]:
    return [(span.language, span.text) for span in split_languages(text, mode, lambda _: answer)]


def test_english_is_one_span():
    assert spans("Hello 世界", "en") == [("en", "Hello 世界")]


def test_english_words_stand_out_of_every_language():
    assert spans("我用Python写程序。", "zh") == [("zh", "我用"), ("en", "Python"), ("zh", "写程序。")]
    assert spans("注文はlatteです", "ja") == [("ja", "注文は"), ("en", "latte"), ("ja", "です")]


def test_scripts_decide_in_auto():
    assert spans("Hello世界こんにちは안녕", "auto") == [("en", "Hello"), ("ja", "世界こんにちは"), ("ko", "안녕")]
    assert spans("我喜欢の字", "auto") == [("zh", "我喜欢"), ("ja", "の字")]


def test_characters_of_one_country_need_no_model():
    assert spans("天気予報", "auto", answer="zh") == [("ja", "天気予報")]
    assert spans("这个软件很复杂", "auto", answer="ja") == [("zh", "这个软件很复杂")]


def test_the_model_decides_where_characters_do_not():
    assert spans("日本語文章一二三", "auto", answer="ja") == [("ja", "日本語文章一二三")]
    assert spans("日本語文章一二三", "auto", answer="zh") == [("zh", "日本語文章一二三")]
    # too short for the small model
    assert spans("人口", "auto", answer="ja") == [("zh", "人口")]


def test_kana_behind_a_latin_word_still_tell():
    assert spans("昨日Amazonで本を買いました。", "auto")[0] == ("ja", "昨日")
    assert spans("今天Amazon打折。さくら", "auto")[0] == ("zh", "今天")
    assert spans("他在Tokyo工作，日本語很好", "auto")[0] == ("zh", "他在")
    assert spans("是的，yes，はい", "auto")[0] == ("zh", "是的，")


def test_a_decimal_point_ends_no_clause():
    assert spans("他的GPA是3.8，TOEFL考了105分。", "auto", answer="ja")[-1] == ("zh", "考了105分。")


def test_a_number_with_its_own_mark_stays_before_it():
    assert ("zh", "是3.8，") in spans("他的GPA是3.8，TOEFL高。", "auto")


def test_cantonese_takes_the_place_of_chinese():
    assert spans("今日天氣", "auto_yue") == [("yue", "今日天氣")]


def test_a_number_goes_to_the_language_it_touches():
    assert spans("买iPhone，8000元", "zh") == [("zh", "买"), ("en", "iPhone，"), ("zh", "8000元")]
    assert spans("ABC123测试", "zh") == [("en", "ABC123"), ("zh", "测试")]
    assert spans("ABC123测试", "all_zh") == [("en", "ABC"), ("zh", "123测试")]


def test_between_two_languages_a_number_goes_to_the_longer_one_that_no_mark_parts_from_it():
    assert spans("中文123English", "auto") == [("zh", "中文"), ("en", "123English")]
    assert spans("用A4纸打印", "zh") == [("zh", "用"), ("en", "A"), ("zh", "4纸打印")]
    assert spans("我们去，3pm", "zh") == [("zh", "我们去，"), ("en", "3pm")]
    assert spans("Python 3，好", "zh") == [("en", "Python 3，"), ("zh", "好")]


def test_an_amount_keeps_its_currency():
    assert spans("买了iPhone，￥8000元", "zh")[-1] == ("zh", "￥8000元")


def test_a_unit_is_read_in_the_language_of_its_number():
    # upstream cuts it out and spells it in English
    assert spans("走了3km，气温6°C。", "zh") == [("zh", "走了3km，气温6°C。")]
    assert spans("It is 3km away", "zh") == [("en", "It is 3km away")]
    assert spans("用3msec", "zh") == [("zh", "用"), ("en", "3msec")]


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="klingon"):
        split_languages("text", "klingon")


def test_the_packaged_model_answers_without_a_network():
    assert [span.language for span in split_languages("中華民國一百年國慶大典", "auto")] == ["zh"]


@given(st.text(max_size=80), st.sampled_from(MODES))
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_between_spans(text, mode):
    found = split_languages(text, mode, lambda _: "ja")
    assert "".join(span.text for span in found) == text
    assert all(left.language != right.language for left, right in pairwise(found))
