"""The evaluator, on the recorded lines beside the checkout and on lines of its own."""

import json

import pytest

from tests.parity.text import BOUNDS, edit_distance, evaluate, evaluate_rows, main, replay, report
from tests.shared import shared_path


def test_recorded_lines_agree_within_the_bounds():
    text, good = report(evaluate(shared_path("golden/text")))
    assert good, text


def test_every_language_is_in_the_record():
    found = evaluate(shared_path("golden/text"))
    assert set(BOUNDS) <= set(found)
    assert all(found[language].lines > 30 for language in BOUNDS)


def _write(folder, phones):
    row = {"lang": "zh", "version": "v2", "text": "你好", "phones": phones, "word2ph": [2, 2], "notes": ""}
    (folder / "mine.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")


def test_a_wrong_phoneme_fails(tmp_path, capsys):
    _write(tmp_path, ["n", "i2", "h", "ao3"])
    assert main(tmp_path) == 0
    _write(tmp_path, ["n", "i3", "h", "ao3"])
    assert main(tmp_path) == 1
    assert "BELOW" in capsys.readouterr().out


def test_marked_lines_are_left_out(tmp_path):
    row = {"lang": "zh", "version": "v2", "text": "你好", "phones": ["x"], "notes": "upstream bug: anything"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert evaluate(tmp_path) == {}


def test_a_line_read_better_on_purpose_is_listed_and_counts_neither_way(tmp_path, capsys):
    rows = [
        {"lang": "zh", "version": "v2", "text": "5mm", "phones": ["w", "u2", "m", "i2", "m", "i3"], "notes": ""},
        {"lang": "zh", "version": "v2", "text": "第3名", "phones": ["d", "i4", "s", "an1", "m", "ing2"], "notes": ""},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert main(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "1/1 lines" in printed
    assert "on purpose: mine.jsonl:1" in printed


def test_a_rule_forgives_nothing_but_its_own_mistake(tmp_path):
    row = {"lang": "zh", "version": "v2", "text": "5mm", "phones": ["w", "u3", "m", "i2", "m", "i3"], "notes": ""}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row), encoding="utf-8")
    found = evaluate(tmp_path)["zh"]
    assert (found.lines, found.lines_equal, found.better) == (1, 0, [])


@pytest.mark.parametrize(
    ("language", "text", "phones"),
    [
        ("zh", "10:1", "sh ir2 y i1"),
        ("zh", "￥58", "SP2 w u3 sh ir2 b a1"),
        ("yue", "€20", "Yj Yi6 Ys Yap6"),
        ("ko", "-3", "- ㅅ ㅏ ㅁ ."),
    ],
)
def test_unmarked_lines_that_upstream_says_with_another_meaning(language, text, phones):
    row = {"lang": language, "version": "v2", "text": text, "phones": phones.split(), "notes": ""}
    found = evaluate_rows([("a line", row)])[language]
    assert (found.lines, len(found.better)) == (0, 1)


def _spans(pieces, text, lid):
    found = evaluate_rows([("a line", {"mode": "auto", "text": text, "pieces": pieces, "lid": lid, "notes": ""})])
    return found["spans"]


def test_spans_that_only_the_small_model_parts_are_on_purpose():
    agreement = _spans([["zh", "我们去"], ["ja", "爬山。"]], "我们去爬山。", [["爬山", "ja"]])
    assert (agreement.lines, len(agreement.better)) == (0, 1)


def test_spans_without_a_reason_are_wrong():
    agreement = _spans([["zh", "我们去 OK"]], "我们去 OK", [])
    assert (agreement.lines, agreement.lines_equal, agreement.better) == (1, 0, [])


def test_mixed_lines_are_split_by_us_too():
    piece: dict[str, object] = {"lang": "zh", "text": "你好OK", "phones": [], "word2ph": None}
    row = {"lang": "zh", "version": "v2", "text": "你好OK", "pieces": [piece], "notes": ""}
    found = evaluate_rows([("a line", row)])
    assert found["spans"].lines_equal == 0


def test_an_empty_folder_is_no_success(tmp_path):
    assert main(tmp_path) == 1


def test_edit_distance():
    assert edit_distance(list("abc"), list("abc")) == 0
    assert edit_distance(list("abc"), list("axc")) == 1
    assert edit_distance(list("abc"), list("bcd")) == 2
    assert edit_distance([], list("ab")) == 2


def test_replay_answers_from_the_record():
    ask = replay([("今天", "zh"), ("天気です", "ja")])
    assert ask("今天") == "zh"
    assert ask("今天天気です") == "ja"
    assert ask("別") == "zh"
