import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.storage import LocalStorage, ObjectStorage, Storage, open_storage


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket on a real S3 server of its own process, on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    names = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/corpora", method="PUT"))
                break
            except OSError:
                time.sleep(0.1)
        yield "s3://corpora"
    finally:
        server.terminate()
        server.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


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
    with pytest.raises(FileNotFoundError):
        storage.read("voices/a/missing")
    storage.delete("voices")
    storage.delete("voices")
    assert storage.names("voices") == []


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
