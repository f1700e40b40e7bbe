from pathlib import Path

import pytest

from pipelines.garbage import find_leftovers, remove
from pipelines.storage import LocalStorage
from pipelines.verify import verify_corpus
from tests.pipelines.made_corpus import commit_unit, describe


@pytest.fixture
def corpus(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def test_a_corpus_of_one_run_has_no_leftovers(corpus: LocalStorage) -> None:
    describe(corpus, commit_unit(corpus))
    corpus.write("voices/anna/rejected/inventory.parquet", b"")
    corpus.write("voices/anna/selection/abc.parquet", b"")
    assert find_leftovers(corpus) == []


def test_units_of_an_earlier_config_go_and_the_rest_stays_whole(corpus: LocalStorage) -> None:
    old, current = commit_unit(corpus, config="old"), commit_unit(corpus, config="new")
    describe(corpus, current)
    leftovers = find_leftovers(corpus)
    assert all(old.unit_id in leftover.path for leftover in leftovers if not leftover.path.startswith("plan/"))
    assert {Path(leftover.path).parent.name for leftover in leftovers} == {
        "plan",
        "shards",
        "manifest",
        "rejected",
        "units",
    }
    assert sum(leftover.size_bytes for leftover in leftovers) > 1_000
    remove(leftovers, corpus)
    assert find_leftovers(corpus) == []
    assert not verify_corpus(corpus).damage


def test_a_voice_that_was_taken_away_is_said_to_be(corpus: LocalStorage) -> None:
    gone, current = commit_unit(corpus, voice="ben"), commit_unit(corpus)
    describe(corpus, current)
    reasons = {leftover.reason for leftover in find_leftovers(corpus) if leftover.path.startswith("voices/ben")}
    assert reasons == {"its voice was not handed in any more"}
    assert gone.unit_id != current.unit_id


def test_what_a_killed_writer_left_goes(corpus: LocalStorage, tmp_path: Path) -> None:
    describe(corpus, commit_unit(corpus))
    half = tmp_path / "voices" / "anna" / "shards" / ".0123.partial"
    half.write_bytes(b"half")
    (leftover,) = find_leftovers(corpus)
    assert leftover.reason == "its writer was killed"
    remove([leftover], corpus)
    assert not half.exists()


def test_marks_are_removed_first(corpus: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that is cut short leaves units without a mark, never a mark without its files."""
    commit_unit(corpus, config="old")
    describe(corpus)
    removed: list[str] = []
    monkeypatch.setattr(corpus, "delete", removed.append)
    remove(find_leftovers(corpus), corpus)
    assert removed[0].endswith(".done")
    assert not any(path.endswith(".done") for path in removed[1:])


def test_without_a_corpus_nothing_is_left_over(corpus: LocalStorage) -> None:
    with pytest.raises(ValueError, match="no corpus"):
        find_leftovers(corpus)
