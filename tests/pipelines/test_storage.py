from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.storage import JoinedStorage, LocalStorage, ObjectStorage, Patience, Storage, StorageError, open_storage
from tests.end_to_end.bad_store import FAULTS, BadStore, Fault, bad_store


@pytest.fixture(scope="module")
def store() -> Iterator[BadStore]:
    with bad_store() as store:
        yield store


@pytest.fixture
def bucket(store: BadStore) -> str:
    """A bucket on a real S3 server of its own process, on loopback."""
    return "s3://corpora"


@pytest.fixture(params=["local", "object"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "corpus")
    bucket = request.getfixturevalue("bucket")
    return open_storage(f"{bucket}/{tmp_path.name}")


def test_both_kinds_hold_the_same_contract(storage: Storage) -> None:
    assert storage.names("voices") == []
    assert not storage.exists("voices/a/x.tar")
    storage.write("voices/a/x.tar", b"one")
    storage.write("voices/a/x.tar", b"two")
    assert storage.read("voices/a/x.tar") == b"two"
    assert storage.write_if_absent("voices/a/x.done", b"first")
    assert not storage.write_if_absent("voices/a/x.done", b"second")
    assert storage.read("voices/a/x.done") == b"first"
    assert storage.names("voices") == ["a"]
    assert storage.names("voices/a") == ["x.done", "x.tar"]
    assert storage.sizes("voices") == {"voices/a/x.done": 5, "voices/a/x.tar": 3}
    assert storage.sizes("nothing") == {}
    with pytest.raises(FileNotFoundError):
        storage.read("voices/a/missing")
    storage.delete("voices")
    storage.delete("voices")
    assert storage.names("voices") == []


def test_runs_and_reports_of_a_joined_corpus_are_local(tmp_path: Path) -> None:
    store, local = LocalStorage(tmp_path / "store"), LocalStorage(tmp_path / "local")
    joined = JoinedStorage(store, local)
    joined.write("voices/a/voice.json", b"card")
    joined.write("voices/a/runs/r/run.json", b"run")
    joined.write("report/history.json", b"[]")
    assert store.sizes("") == {"voices/a/voice.json": 4}
    assert joined.sizes("voices/a") == {"voices/a/voice.json": 4, "voices/a/runs/r/run.json": 3}
    assert joined.names("voices/a") == ["runs", "voice.json"]
    assert joined.read("voices/a/runs/r/run.json") == b"run"
    joined.delete("voices/a")
    assert joined.sizes("") == {"report/history.json": 2}
    assert open_storage(joined) is joined


def test_of_many_writers_exactly_one_puts_the_mark(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        put = list(pool.map(lambda number: storage.write_if_absent("mark", str(number).encode()), range(8)))
    assert sum(put) == 1
    assert storage.read("mark") == str(put.index(True)).encode()


@pytest.mark.parametrize("path", ["../outside", "a/../../outside", "/etc/passwd"])
def test_no_path_leaves_the_root(storage: Storage, path: str) -> None:
    with pytest.raises(ValueError, match="leaves its storage"):
        storage.write(path, b"")


def test_a_failed_write_leaves_nothing_under_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.storage.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        storage.write("x.tar", b"data")
    assert not storage.exists("x.tar")
    assert storage.names("") == []


def test_the_scheme_chooses_the_kind(tmp_path: Path) -> None:
    assert isinstance(open_storage(tmp_path), LocalStorage)
    assert open_storage(f"file://{tmp_path}").root == str(tmp_path)
    assert isinstance(open_storage("memory://corpus"), ObjectStorage)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        LocalStorage(tmp_path).write("a/b", b"data")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


ALWAYS = 1_000
HASTY = Patience(attempts=3, first_pause_s=0.05, timeout_s=1.0)
PATIENT = Patience(attempts=6, first_pause_s=0.05, timeout_s=3.0)
LONG = bytes(range(256)) * 4_000
"""Longer than what a socket swallows at once, so that a connection is lost in the middle of it."""


@pytest.fixture
def hasty(bucket: str, tmp_path: Path) -> ObjectStorage:
    return ObjectStorage(f"{bucket}/{tmp_path.name}", HASTY)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails_for_a_moment_is_asked_again(
    bucket: str, store: BadStore, fault: Fault, tmp_path: Path
) -> None:
    patient = ObjectStorage(f"{bucket}/{tmp_path.name}", PATIENT)
    failed = store.failed
    store.fail(fault, 1)
    patient.write("a/x.tar", LONG)
    store.fail(fault, 1)
    assert patient.write_if_absent("a/x.done", b"mark")
    store.fail(fault, 1)
    assert patient.read("a/x.tar") == LONG
    store.fail(fault, 1)
    assert patient.names("a") == ["x.done", "x.tar"]
    store.fail(fault, 1)
    assert not patient.exists("a/y.tar")
    assert store.failed == failed + 5


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_stays_away_is_one_line_and_nothing_is_half_written(
    hasty: ObjectStorage, store: BadStore, fault: Fault
) -> None:
    hasty.write("a/x.tar", b"before")
    store.fail(fault, ALWAYS)
    with pytest.raises(StorageError, match=r"a/x\.tar: could not be written in 3 attempts \(.*run the same command"):
        hasty.write("a/x.tar", LONG)
    with pytest.raises(StorageError) as raised:
        hasty.write_if_absent("a/x.done", b"mark")
    store.fail(fault, 0)
    assert len(str(raised.value).splitlines()) == 1
    assert hasty.names("a") == ["x.tar"]
    assert hasty.read("a/x.tar") == b"before"


def test_a_mark_whose_answer_was_lost_counts_as_put(hasty: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    put = hasty._put
    calls = []

    def answer_lost(key: str, data: bytes, *, mode: str) -> None:
        calls.append(key)
        put(key, data, mode=mode)
        if len(calls) == 1:
            raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(hasty, "_put", answer_lost)
    assert hasty.write_if_absent("mark", b"mine")
    assert len(calls) == 2
    assert not hasty.write_if_absent("mark", b"mine")


def test_a_bucket_that_is_not_there_is_one_line(store: BadStore) -> None:
    with pytest.raises(StorageError, match="is the bucket there"):
        ObjectStorage("s3://nowhere/corpus", HASTY).write("a", b"data")
