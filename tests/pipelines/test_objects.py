"""Recordings in a real S3 server, in a process of its own, on loopback."""

import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from pipelines import objects
from pipelines.engines.decoder import UndecodableError, decode, probe
from pipelines.engines.flac import encode_flac
from pipelines.objects import list_objects, object_address, object_digest, opened_header, opened_object, read_object
from pipelines.rows import LevelledRecording, Recording
from pipelines.sources import HandedIn, gather
from pipelines.stages.ingest import IngestSources
from pipelines.stages.normalise import NormaliseRecordings
from pipelines.storage import LocalStorage
from tests.pipelines.engines.signals import speech_like


@pytest.fixture(scope="module")
def store() -> Iterator[fsspec.AbstractFileSystem]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    names = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{address}/recordings", method="PUT"))
                break
            except OSError:
                time.sleep(0.1)
        yield fsspec.filesystem("s3")
    finally:
        server.terminate()
        server.wait()
        fsspec.filesystem("s3").clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


FLAC = encode_flac(speech_like(3.0, 32_000), 32_000)
OTHER_FLAC = encode_flac(speech_like(3.0, 32_000, seed=1), 32_000)


@pytest.fixture
def prefix(store: fsspec.AbstractFileSystem, tmp_path: Path) -> str:
    """Two voices as an object store would hold them."""
    root = f"recordings/{tmp_path.name}"
    for name, data in {
        "anna/monday’s take #1 100%.flac": FLAC,
        "anna/week::2/tuesday.flac": OTHER_FLAC,
        "anna/week::2/tuesday.txt": b"Good morning.",
        "anna/voice.yaml": b"language: en\nlicence: CC0\n",
        "anna/notes.pdf": b"no recording",
        "anna/.hidden.flac": FLAC,
        "ben/again.flac": FLAC,
        "ben/broken.wav": b"RIFF",
        "ben/broken.srt": b"1\n00:00:00,000 --> 00:00:01,000\nHello.\n",
    }.items():
        store.pipe_file(f"{root}/{name}", data)
    return f"s3://{root}"


def look(place: str | Path, tmp_path: Path) -> HandedIn:
    return gather(Path(place), LocalStorage(tmp_path / "corpus"))


def test_a_prefix_is_read_like_a_folder(prefix: str, tmp_path: Path) -> None:
    found = look(prefix, tmp_path)
    assert [card.voice for card in found.cards] == ["anna", "ben"]
    assert found.cards[0].language == "en"
    by_name = {source.uri.removeprefix(prefix): source for source in found.sources}
    assert sorted(by_name) == ["/anna/monday’s take #1 100%.flac", "/anna/week::2/tuesday.flac", "/ben/again.flac",
                               "/ben/broken.wav"]  # fmt: skip
    assert by_name["/anna/week::2/tuesday.flac"].transcript == "Good morning."
    assert by_name["/anna/week::2/tuesday.flac"].licence == "CC0"
    assert by_name["/ben/broken.wav"].transcript_format == "srt"
    assert by_name["/ben/again.flac"].size_bytes == len(FLAC)
    assert found.rejections == ()


def test_what_lies_in_the_store_is_known_by_its_bytes_as_on_a_disk(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "disk" / "anna").mkdir(parents=True)
    (tmp_path / "disk" / "anna" / "renamed.flac").write_bytes(FLAC)
    (local,) = look(tmp_path / "disk", tmp_path / "a").sources
    remote = look(prefix, tmp_path / "b").sources
    assert [source.digest for source in remote if "monday" in source.uri] == [local.digest]


def test_a_recording_goes_through_the_stages_from_the_store(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(FLAC)
    (source,) = [source for source in look(prefix, tmp_path).sources if "monday" in source.uri]
    (recording,) = IngestSources().process(source, None)
    assert isinstance(recording, Recording)
    assert recording.uri == source.uri
    (levelled,) = NormaliseRecordings().process(recording, None)
    (local,) = NormaliseRecordings().process(replace(recording, uri=str(tmp_path / "a.flac")), None)
    assert isinstance(levelled, LevelledRecording)
    assert isinstance(local, LevelledRecording)
    assert levelled.wave.tobytes() == local.wave.tobytes()


def test_the_inventory_saves_reading_objects_again(
    prefix: str, store: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(prefix, tmp_path)
    read: list[str] = []

    def counted(uri: str) -> str:
        read.append(uri)
        return object_digest(uri)

    monkeypatch.setattr("pipelines.inventory.object_digest", counted)
    assert look(prefix, tmp_path).sources == first.sources
    assert read == []
    store.pipe_file(f"{prefix.removeprefix('s3://')}/ben/again.flac", OTHER_FLAC)
    changed = look(prefix, tmp_path)
    assert read == [f"{prefix}/ben/again.flac"]
    assert [source.digest for source in changed.sources] != [source.digest for source in first.sources]


def test_a_table_may_name_objects_beside_files(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "local.flac").write_bytes(FLAC)
    table = tmp_path / "t.csv"
    table.write_text(
        f"voice,uri,transcript\nanna,{prefix}/ben/again.flac,\"Hello, there.\"\nben,local.flac,\n"
        f"ben,{prefix}/ben/gone.flac,\nben,http://127.0.0.1/a.flac,\nben,simplecache::{prefix}/ben/again.flac,\n"
    )  # fmt: skip
    found = look(table, tmp_path)
    assert {source.uri: source.transcript for source in found.sources} == {
        f"{prefix}/ben/again.flac": "Hello, there.",
        str(tmp_path / "local.flac"): None,
    }
    assert sorted((entry.uri.rsplit("/", 1)[-1], entry.reason) for entry in found.rejections) == [
        ("a.flac", "bad_name"),
        ("again.flac", "bad_name"),
        ("gone.flac", "unreadable"),
    ]
    assert len({source.digest for source in found.sources}) == 1


def test_the_reference_of_a_voice_is_fetched(prefix: str, store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    store.pipe_file(f"{prefix.removeprefix('s3://')}/ben/voice.yaml", b"reference: again.flac\n")
    found = look(prefix, tmp_path)
    assert found.references["ben"].read_bytes() == FLAC


def test_nothing_under_an_address_is_an_error_that_names_it(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="s3://recordings/nowhere"):
        look("s3://recordings/nowhere", tmp_path)
    with pytest.raises(ValueError, match="s3://no-such-bucket"):
        look("s3://no-such-bucket/a", tmp_path)
    assert list_objects(f"{prefix}/ben")


@pytest.mark.parametrize("read", [probe, decode])
def test_a_missing_object_is_unreadable_and_a_failing_store_is_not(
    read: object, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(read)
    with pytest.raises(UndecodableError, match="unreadable"):
        read(f"{prefix}/ben/gone.flac")
    monkeypatch.setattr(objects, "_FIRST_PAUSE_S", 0.001)
    tries = []

    def fails(self: object, *arguments: object) -> bytes:
        tries.append(arguments)
        raise TimeoutError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr("s3fs.core.S3File._fetch_range", fails)
        with pytest.raises(OSError, match="no answer"):
            read(f"{prefix}/ben/again.flac")
    assert len(tries) >= 5
    assert read(f"{prefix}/ben/again.flac").rate_hz == 32_000


def test_the_bytes_come_back_by_every_way(prefix: str) -> None:
    uri = f"{prefix}/anna/monday’s take #1 100%.flac"
    with opened_object(uri) as copy, opened_header(uri) as header:
        assert copy.read() == header.read() == read_object(uri) == FLAC
        header.seek(-10, io.SEEK_END)
        assert header.read() == FLAC[-10:]


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("s3://bucket/a b/c::d", "s3://bucket/a b/c::d"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        ("gs://bucket", "gs://bucket"),
        ("/data/s3/a", None),
        ("http://host/a", None),
        ("file:///etc/passwd", None),
        ("simplecache::s3://bucket/a", None),
        ("s3://", None),
    ],
)
def test_only_addresses_of_object_stores_are_followed(place: str | Path, address: str | None) -> None:
    assert object_address(place) == address
