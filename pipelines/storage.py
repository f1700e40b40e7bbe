"""Where a corpus lives: a local folder or an object store, behind the nine calls the layout needs.

Nothing is ever seen half-written under its final name. A local write goes to a temporary name, is flushed to the disk
and renamed; an object appears in its store when the whole of it has arrived. A store that does not answer is asked
again for a while; then, and where a disk is full, a StorageError says so in one line.
"""

import asyncio
import logging
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem

logger = logging.getLogger(__name__)

T = TypeVar("T")


class StorageError(OSError):
    """The corpus cannot be read or written where it lies: no unit can help it, so the run ends. One line."""


class Storage(Protocol):
    """Paths are relative to `root`, with `/` between their parts. Any call may raise a StorageError."""

    root: str

    def read(self, path: str) -> bytes:
        """The bytes at `path`. Raises FileNotFoundError."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Put `data` at `path`, replacing what was there, all or nothing."""
        ...

    def write_if_absent(self, path: str, data: bytes) -> bool:
        """Put `data` at `path` unless something is there already; says whether it was put."""
        ...

    def exists(self, path: str) -> bool: ...

    def size_bytes(self, path: str) -> int:
        """The length of the file at `path`. Raises FileNotFoundError."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names directly inside `folder`, sorted; empty where there is none."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Path → length of every file below `folder`."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing there is fine."""
        ...

    def unfinished(self) -> list[str]:
        """Paths of what killed writers left under temporary names, sorted."""
        ...


_PARTIAL = ".partial"
_SLOWEST_BYTES_PER_S = 1 << 20


class LocalStorage:
    """A folder on a disk that every worker sees."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(Path(root).absolute())

    def path(self, path: str) -> Path:
        """The file behind `path`, which may not leave the root."""
        parts = path.split("/")
        if ".." in parts or path.startswith("/"):
            raise ValueError(f"the path {path!r} leaves its storage")
        return Path(self.root, *parts)

    def read(self, path: str) -> bytes:
        return self.path(path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        temporary = self._temporary(path, data)
        target = self.path(path)
        temporary.replace(target)
        _sync_folder(target.parent)

    def write_if_absent(self, path: str, data: bytes) -> bool:
        temporary = self._temporary(path, data)
        target = self.path(path)
        try:
            os.link(temporary, target)  # unlike a rename, a link fails where the name is taken
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync_folder(target.parent)
        return True

    def exists(self, path: str) -> bool:
        return self.path(path).exists()

    def size_bytes(self, path: str) -> int:
        return self.path(path).stat().st_size

    def names(self, folder: str) -> list[str]:
        place = self.path(folder)
        if not place.is_dir():
            return []
        return sorted(entry.name for entry in place.iterdir() if not entry.name.endswith(_PARTIAL))

    def sizes(self, folder: str) -> dict[str, int]:
        files = (path for path in sorted(self.path(folder).rglob("*")) if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in files}

    def delete(self, path: str) -> None:
        target = self.path(path)
        if target.is_dir() and not target.is_symlink():
            for entry in target.iterdir():
                self.delete(f"{path}/{entry.name}")
            target.rmdir()
        else:
            target.unlink(missing_ok=True)

    def unfinished(self) -> list[str]:
        root = Path(self.root)
        return sorted(str(path.relative_to(root)) for path in root.rglob(f".*{_PARTIAL}"))

    def _temporary(self, path: str, data: bytes) -> Path:
        target = self.path(path)
        temporary = target.parent / f".{uuid.uuid4().hex}{_PARTIAL}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if temporary.exists():
                temporary.unlink()  # a full disk would stay full of halves
            raise StorageError(
                f"{target}: cannot be written ({error.strerror or error}); mend that and run the same command again: "
                "what is committed stays"
            ) from error
        return temporary


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a store that fails is asked again: a minute or two for a restart, then the run ends."""

    attempts: int = 7
    first_pause_s: float = 0.5
    """Before the second attempt; doubled before each further one."""
    timeout_s: float = 20.0
    """For an answer of an S3 store (others keep their own), and for a write, which gets a second more per MB."""


class ObjectStorage:
    """A prefix of an object store, reached through fsspec; addresses and secrets come from the environment."""

    def __init__(self, uri: str, patience: Patience | None = None) -> None:
        self.root = uri.rstrip("/")
        self._patience = patience or Patience()
        options: dict[str, Any] = {}
        if self.root.startswith(("s3://", "s3a://")):
            # Both layers below would try again, each time the other does: one place decides.
            seconds = self._patience.timeout_s
            options["config_kwargs"] = {
                "retries": {"total_max_attempts": 1},
                "connect_timeout": seconds,
                "read_timeout": seconds,
            }
            options["skip_instance_cache"] = True
        self._system, self._prefix = fsspec.core.url_to_fs(self.root, **options)
        self._system.retries = 1

    def _key(self, path: str) -> str:
        if ".." in path.split("/") or path.startswith("/"):
            raise ValueError(f"the path {path!r} leaves its storage")
        return f"{self._prefix}/{path}"

    def read(self, path: str) -> bytes:
        return self._asked(path, "read", lambda key: self._system.cat_file(key))

    def write(self, path: str, data: bytes) -> None:
        try:
            self._asked(path, "written", lambda key: self._put(key, data, mode="overwrite"))
        except FileNotFoundError as error:
            raise StorageError(f"{self.root}: cannot be written ({error}); is the bucket there?") from error

    def write_if_absent(self, path: str, data: bytes) -> bool:
        tried = 0

        def put(key: str) -> bool:
            nonlocal tried
            tried += 1
            try:
                self._put(key, data, mode="create")  # If-None-Match: the store decides
            except FileExistsError:
                # An attempt before this one may have arrived, and only its answer have been lost.
                return tried > 1 and self._system.cat_file(key) == data
            return True

        return self._asked(path, "written", put)

    def exists(self, path: str) -> bool:
        try:
            self._asked(path, "looked up", self._fresh(lambda key: self._system.info(key)))
        except FileNotFoundError:
            return False
        return True

    def size_bytes(self, path: str) -> int:
        return int(self._asked(path, "looked up", self._fresh(lambda key: self._system.size(key))))

    def names(self, folder: str) -> list[str]:
        try:
            entries = self._asked(folder, "listed", self._fresh(lambda key: self._system.ls(key, detail=False)))
        except FileNotFoundError:
            return []
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    def sizes(self, folder: str) -> dict[str, int]:
        try:
            found = self._asked(folder, "listed", self._fresh(lambda key: self._system.find(key, detail=True)))
        except FileNotFoundError:
            return {}
        return {key[len(self._prefix) + 1 :]: int(entry["size"]) for key, entry in found.items()}

    def delete(self, path: str) -> None:
        try:
            self._asked(path, "deleted", self._fresh(lambda key: self._system.rm(key, recursive=True)))
        except FileNotFoundError:
            return

    def unfinished(self) -> list[str]:
        return []  # an object is there when the whole of it has arrived

    def _put(self, key: str, data: bytes, *, mode: str) -> None:
        system = self._system
        if not isinstance(system, AsyncFileSystem):
            system.pipe_file(key, data, mode=mode)
            return
        # No client ends a write that the other side stopped to read.
        seconds = self._patience.timeout_s + len(data) / _SLOWEST_BYTES_PER_S

        async def put() -> None:
            await asyncio.wait_for(system._pipe_file(key, data, mode=mode), seconds)

        fsspec.asyn.sync(system.loop, put)

    def _fresh(self, call: Callable[[str], T]) -> Callable[[str], T]:
        """`call` without what fsspec remembers of earlier answers: others write here, too."""

        def asked(key: str) -> T:
            self._system.invalidate_cache()
            return call(key)

        return asked

    def _asked(self, path: str, done: str, call: Callable[[str], T]) -> T:
        """The answer of the store to `call`, asked again with growing pauses while it fails.

        Raises:
            FileNotFoundError: it says that nothing is there.
            StorageError: it refuses, or failed to the last attempt.
        """
        key, patience = self._key(path), self._patience
        for attempt in range(1, patience.attempts + 1):
            try:
                return call(key)
            except FileNotFoundError:
                raise
            except PermissionError as error:
                raise StorageError(
                    f"{self.root}/{path}: the store refuses access ({_line_of(error)}); check the credentials"
                ) from error
            except Exception as error:
                # Every kind of store has errors of its own; whatever is no answer is asked for again.
                if attempt == patience.attempts:
                    raise StorageError(
                        f"{self.root}/{path}: could not be {done} in {attempt} attempts ({_line_of(error)}); see to "
                        "the store and run the same command again: what is committed stays"
                    ) from error
                logger.warning("%s/%s, attempt %d: %s", self.root, path, attempt, _line_of(error))
                # Not all workers at once, when the store comes back.
                time.sleep(patience.first_pause_s * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
        raise AssertionError("the last attempt returns or raises")


class JoinedStorage:
    """A corpus in a store, but for its runs and reports, which lie in a local folder: those are wanted as files."""

    def __init__(self, store: Storage, local: LocalStorage) -> None:
        self.root = store.root
        self._store, self._local = store, local

    def read(self, path: str) -> bytes:
        return self._of(path).read(path)

    def write(self, path: str, data: bytes) -> None:
        self._of(path).write(path, data)

    def write_if_absent(self, path: str, data: bytes) -> bool:
        return self._of(path).write_if_absent(path, data)

    def exists(self, path: str) -> bool:
        return self._of(path).exists(path)

    def size_bytes(self, path: str) -> int:
        return self._of(path).size_bytes(path)

    def names(self, folder: str) -> list[str]:
        return sorted({*self._store.names(folder), *self._local.names(folder)})

    def sizes(self, folder: str) -> dict[str, int]:
        return {**self._store.sizes(folder), **self._local.sizes(folder)}

    def delete(self, path: str) -> None:
        self._store.delete(path)
        self._local.delete(path)

    def unfinished(self) -> list[str]:
        return self._local.unfinished()

    def _of(self, path: str) -> Storage:
        parts = path.split("/")
        return self._local if parts[0] == "report" or (parts[0] == "voices" and parts[2:3] == ["runs"]) else self._store


def open_storage(place: str | Path | Storage) -> Storage:
    """The storage behind a path or a URI such as `s3://bucket/corpus`; one that is open already, as it is."""
    if not isinstance(place, str | Path):
        return place
    text = str(place)
    if text.startswith("file://"):
        return LocalStorage(text.removeprefix("file://"))
    if "://" in text:
        return ObjectStorage(text)
    return LocalStorage(text)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line_of(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
