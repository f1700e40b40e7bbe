"""The evaluator, on the recorded lines beside the checkout and on lines of its own."""

import json

from tests.parity.text import BOUNDS, edit_distance, evaluate, main, replay, report
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
