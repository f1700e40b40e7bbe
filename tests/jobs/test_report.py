from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.report import coverage, report, report_runs
from pipelines.rows import MANIFEST_SCHEMA
from tests.jobs.conftest import ScoredCorpus
from tests.pipelines.report.made_corpus import make_corpus


def test_the_page_is_about_every_voice_and_its_run(scored: ScoredCorpus, tmp_path: Path) -> None:
    page = report(scored.workspace.corpus, tmp_path / "new" / "page.html")
    assert page == tmp_path / "new" / "page.html"
    text = page.read_text(encoding="utf-8")
    assert all(name in text for name in ("ada", "linus", "grace", "unreadable"))
    assert all(f"{task.run_id}/evaluation.html" in text for task in scored.tasks.values())
    assert "not speech" in text


def test_the_page_of_a_run_is_about_its_voice_alone(scored: ScoredCorpus, tmp_path: Path) -> None:
    report_runs(scored.workspace.corpus, {"ada": tmp_path / "ada"})
    assert [path.name for path in tmp_path.iterdir()] == ["ada"]
    text = (tmp_path / "ada" / "report.html").read_text(encoding="utf-8")
    assert scored.tasks["ada"].run_id in text
    assert "linus" not in text


def test_no_corpus_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gsv prepare"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_borrowed_words_do_not_ask_for_sentences_of_their_language(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    (manifest,) = (corpus / "voices" / "linus" / "manifest").iterdir()
    first, *others = pq.read_table(manifest).to_pylist()
    first["phonemes"] += ["HH", "AY1"]
    first["spans"].append({"language": "en", "num_phonemes": 2})
    pq.write_table(pa.Table.from_pylist([first, *others], schema=MANIFEST_SCHEMA), manifest)
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("Measure the usual treasure.\n谢谢\x1b[31m你。\n" + "长" * 501 + "\n", encoding="utf-8")
    found = coverage(corpus, "linus", sentences)
    assert [entry.language for entry in found.languages] == ["zh", "en"]
    assert found.proposal
    assert [entry.sentence.text for entry in found.proposal.sentences] == ["谢谢 [31m你。"]
    assert {language for language, _, _ in found.proposal.uncovered} == {"zh"}
    assert found.unusable == 1


def test_sentences_are_read_with_the_words_of_the_voice(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "voices" / "ada" / "lexicon.tsv").write_text("Zhezh\tZH EY1 ZH\ten\n", encoding="utf-8")
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("Zhezh.\n", encoding="utf-8")
    found = coverage(corpus, "ada", sentences)
    assert found.proposal
    assert ("en", "pairs", "EY ZH") in found.proposal.sentences[0].adds
