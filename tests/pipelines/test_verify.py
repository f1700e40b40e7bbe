import json
from pathlib import Path

import pytest

from pipelines.stages.shard import ShardWriter
from pipelines.storage import LocalStorage
from pipelines.units import Unit, done_path, file_digests
from pipelines.verify import Verified, discard_damaged, verify_corpus
from tests.pipelines.made_corpus import commit_unit, describe, example


@pytest.fixture
def corpus(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


@pytest.fixture
def unit(corpus: LocalStorage) -> Unit:
    unit = commit_unit(corpus)
    describe(corpus, unit)
    return unit


def only_damage(verified: Verified) -> tuple[str, str]:
    (damage,) = verified.damage
    return damage.path, damage.what


def test_an_untouched_corpus_is_whole(corpus: LocalStorage, unit: Unit) -> None:
    seen: list[tuple[int, int]] = []
    verified = verify_corpus(corpus, on_unit=lambda done, total: seen.append((done, total)))
    assert not verified.damage
    assert (verified.units, verified.clips, verified.files) == (1, 3, 4)
    assert seen == [(1, 1)]


@pytest.mark.parametrize("name", ["shards/{}-00001.tar", "manifest/{}.parquet", "rejected/{}.parquet"])
def test_one_changed_byte_is_found(corpus: LocalStorage, unit: Unit, name: str) -> None:
    path = f"voices/anna/{name.format(unit.unit_id)}"
    data = bytearray(corpus.read(path))
    data[len(data) // 2] ^= 1
    corpus.write(path, bytes(data))
    damaged = [damage for damage in verify_corpus(corpus).damage if "changed" in damage.what]
    assert [damage.path for damage in damaged] == [path]


def test_a_missing_shard_is_found(corpus: LocalStorage, unit: Unit) -> None:
    corpus.delete(f"voices/anna/shards/{unit.unit_id}-00000.tar")
    whats = {damage.what for damage in verify_corpus(corpus).damage}
    assert "is missing" in whats
    assert any(what.startswith("lacks 0000") for what in whats)


def test_a_shard_that_lacks_a_clip_of_its_manifest_is_found_even_if_its_digest_holds(
    corpus: LocalStorage, unit: Unit
) -> None:
    files = ShardWriter(most_examples=2).files("anna", unit.unit_id, [example(0)], [], {})
    path = f"voices/anna/shards/{unit.unit_id}-00000.tar"
    corpus.write(path, files[path])
    mark = json.loads(corpus.read(done_path(unit)))
    mark["files"] |= file_digests({path: files[path]})
    corpus.write(done_path(unit), json.dumps(mark).encode())
    assert "lacks 00000000000000000001.content.npy" in only_damage(verify_corpus(corpus))[1]


def test_a_mark_that_is_no_mark_is_found(corpus: LocalStorage, unit: Unit) -> None:
    for text in (b"", b"{}", b"[1]", b'{"accounts": []}'):
        corpus.write(done_path(unit), text)
        assert "is no mark" in only_damage(verify_corpus(corpus))[1]


def test_books_that_do_not_balance_are_found(corpus: LocalStorage, unit: Unit) -> None:
    mark = json.loads(corpus.read(done_path(unit)))
    mark["accounts"][0]["kept_samples"] += 1
    corpus.write(done_path(unit), json.dumps(mark).encode())
    assert "do not balance" in only_damage(verify_corpus(corpus))[1]


def test_a_unit_whose_mark_is_gone_is_found(corpus: LocalStorage, unit: Unit) -> None:
    corpus.delete(done_path(unit))
    assert only_damage(verify_corpus(corpus))[0] == "corpus.json"


def test_a_discarded_unit_is_one_to_make_again(corpus: LocalStorage, unit: Unit) -> None:
    corpus.delete(f"voices/anna/manifest/{unit.unit_id}.parquet")
    assert discard_damaged(verify_corpus(corpus), corpus) == [unit.unit_id]
    assert not corpus.exists(done_path(unit))


def test_no_corpus_is_named(corpus: LocalStorage) -> None:
    with pytest.raises(ValueError, match="gsv prepare"):
        verify_corpus(corpus)
