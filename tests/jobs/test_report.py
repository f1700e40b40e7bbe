from pathlib import Path

import pytest

from jobs.report import report, report_runs
from tests.jobs.conftest import ScoredCorpus


def test_the_page_is_about_every_voice_and_its_run(scored: ScoredCorpus, tmp_path: Path) -> None:
    page = report(scored.workspace.corpus, tmp_path / "new" / "page.html")
    assert page == tmp_path / "new" / "page.html"
    text = page.read_text(encoding="utf-8")
    assert all(name in text for name in ("ada", "linus", "grace", "unreadable"))
    assert all(task.run_id in text for task in scored.tasks.values())
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
