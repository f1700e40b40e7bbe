"""Recordings in an object store: what lies under an address, the stamp each object is known by, and its bytes.

Addresses come from users' tables and are hostile until checked: only the schemes of object stores are followed, and a
key never becomes a chain of file systems, as fsspec would read `a::b`. A store that fails is asked again; then the
error goes up as it is, because a recording that could not be fetched today is not a bad recording.
"""

import hashlib
import io
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

_SCHEMES = ("s3", "s3a", "gs", "gcs", "abfs", "az")
# A Path folds the two slashes into one.
_ADDRESS = re.compile(rf"({'|'.join(_SCHEMES)}):/{{1,2}}(?=[^/])(.*)", re.DOTALL)
_BLOCK_BYTES = 4 << 20
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.5

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ObjectStamp:
    """An object without its bytes: another `etag` or size, and it is read again."""

    uri: str
    size_bytes: int
    etag: str


def object_address(place: "str | Path") -> str | None:
    """`place` as `scheme://bucket/key` where it is an address in an object store, else None."""
    match = _ADDRESS.fullmatch(str(place))
    return f"{match[1]}://{match[2]}" if match else None


def list_objects(uri: str) -> list[ObjectStamp]:
    """Every object under `uri`, by name.

    Raises:
        ValueError: there is no such bucket, or it may not be looked into.
    """
    system, key = _system_of(uri.rstrip("/"))
    try:
        entries = _asked(lambda: system.find(key, detail=True))
    except (FileNotFoundError, PermissionError) as error:
        raise ValueError(f"{uri}: the store shows nothing there ({error or type(error).__name__})") from error
    scheme = uri.partition("://")[0]
    stamps = [_stamp(f"{scheme}://{name}", entry) for name, entry in entries.items() if entry["type"] == "file"]
    return sorted(stamps, key=lambda stamp: stamp.uri)


def stamp_of(uri: str) -> ObjectStamp:
    """Size and etag of one object. Raises FileNotFoundError."""
    system, key = _system_of(uri)
    return _stamp(uri, _asked(lambda: system.info(key)))


def read_object(uri: str) -> bytes:
    """All bytes of a small object. Raises FileNotFoundError."""
    system, key = _system_of(uri)
    return _asked(lambda: system.cat_file(key))


def object_digest(uri: str) -> str:
    """SHA-256 of an object, read as a stream. Raises FileNotFoundError."""

    def read() -> str:
        digest = hashlib.sha256()
        with _stream(uri) as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    return _asked(read)


@contextmanager
def opened_object(uri: str) -> Iterator[BinaryIO]:
    """A local copy of an object, open for reading, gone afterwards: a decoder seeks too much for a network.

    Raises:
        FileNotFoundError: it is not there.
    """
    with tempfile.TemporaryFile() as copy:

        def fetch() -> None:
            copy.seek(0)
            copy.truncate()
            with _stream(uri) as stream:
                while block := stream.read(_BLOCK_BYTES):
                    copy.write(block)

        _asked(fetch)
        copy.seek(0)
        yield copy  # type: ignore[misc]


@contextmanager
def opened_header(uri: str) -> Iterator[BinaryIO]:
    """An object read where it lies, block by block: for a look at its header. An error of the store is not lost.

    Raises:
        FileNotFoundError: it is not there.
        OSError: the store failed while libav, which hides errors of its input, was reading.
    """
    system, key = _system_of(uri)
    with _asked(lambda: system.open(key, "rb", block_size=256 << 10, cache_type="blockcache")) as stream:
        reader = _Recalling(stream)
        yield io.BufferedReader(reader)
        if reader.error is not None:
            raise OSError(f"{uri}: {reader.error}") from reader.error


class _Recalling(io.RawIOBase):
    """A stream that recalls the first error of its source."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = _asked(lambda: self._source.read(len(buffer)))
        except Exception as error:
            self.error = self.error or error
            raise
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()


def _stream(uri: str) -> Any:
    system, key = _system_of(uri)
    return system.open(key, "rb", block_size=_BLOCK_BYTES, cache_type="readahead")


def _system_of(uri: str) -> tuple[Any, str]:
    """The file system of an address, and the address without its scheme. fsspec keeps one system per process."""
    address = object_address(uri)
    if address is None:
        raise ValueError(f"{uri}: expected an address such as s3://bucket/key, with one of {', '.join(_SCHEMES)}")
    scheme, _, key = address.partition("://")
    system = fsspec.filesystem(scheme)
    system.invalidate_cache()  # others write there, too
    return system, key


def _stamp(uri: str, entry: dict[str, Any]) -> ObjectStamp:
    known = (entry.get(name) for name in ("ETag", "etag", "md5Hash", "LastModified", "updated", "last_modified"))
    etag = next((str(value).strip('"') for value in known if value), "")
    return ObjectStamp(uri=uri, size_bytes=int(entry["size"]), etag=etag)


def _asked(call: Callable[[], T]) -> T:
    """The answer of the store, asked again with growing pauses while it fails."""
    for attempt in range(_ATTEMPTS):
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except Exception:
            # Every kind of store has errors of its own; whatever is no answer is asked for again.
            if attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(_FIRST_PAUSE_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")
