"""Phonemes out of manifests, span by span, and what they cover."""

import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.report.coverage import voice_coverage
from pipelines.report.numbers import collect, collect_coverage
from pipelines.rows import MANIFEST_SCHEMA
from pipelines.storage import LocalStorage
from tests.pipelines.report.made_corpus import make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("coverage") / "corpus")


def test_a_voice_covers_what_its_chosen_clips_say(corpus):
    (english,) = collect_coverage(corpus, "ada")
    assert english.language == "en"
    # 13 of 14 clips are chosen; a second unit is not of this corpus any more.
    assert english.phonemes_heard == 13 * 20
    by_name = {voice.voice: voice for voice in collect(corpus).voices}
    assert by_name["ada"].coverage == (english,)
    assert [entry.language for entry in by_name["linus"].coverage] == ["zh"]
    assert by_name["hostile"].coverage == ()


def test_a_voice_or_a_corpus_that_is_not_there_is_named(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"no voice 'nobody' in it; there are ada, gone, hostile, linus"):
        collect_coverage(corpus, "nobody")
    with pytest.raises(ValueError, match="gsv prepare"):
        collect_coverage(tmp_path, "ada")


def test_spans_part_the_phonemes_of_a_mixed_sentence_and_old_rows_have_none(tmp_path):
    rows = [
        {"clip_id": "1", "language": "zh", "phonemes": ["n", "i3", "HH", "AY1"],
         "spans": [{"language": "zh", "num_phonemes": 2}, {"language": "en", "num_phonemes": 2}]},
        {"clip_id": "2", "language": "zh", "phonemes": ["n", "i3"], "spans": []},
        {"clip_id": "3", "language": "zh", "phonemes": [], "spans": []},
    ]  # fmt: skip
    storage = LocalStorage(tmp_path)
    (tmp_path / "manifest").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), tmp_path / "manifest" / "u.parquet")
    found = voice_coverage(storage, ".", ["u", "absent"])
    assert [(entry.language, entry.phonemes_heard) for entry in found] == [("zh", 4), ("en", 2)]
    assert [entry.language for entry in voice_coverage(storage, ".", ["u"], {"2"})] == ["zh"]


def test_ten_thousand_rows_take_less_than_two_seconds(tmp_path):
    phonemes = ["n", "i3", "h", "ao3", ","] * 12
    row = {"language": "zh", "phonemes": phonemes, "spans": [{"language": "zh", "num_phonemes": 60}]}
    (tmp_path / "manifest").mkdir()
    table = pa.Table.from_pylist([{**row, "clip_id": str(number)} for number in range(10_000)], schema=MANIFEST_SCHEMA)
    pq.write_table(table, tmp_path / "manifest" / "u.parquet")
    began = time.process_time()
    (found,) = voice_coverage(LocalStorage(tmp_path), ".", ["u"])
    assert time.process_time() - began < 2
    assert found.phonemes_heard == 480_000
