"""Where a corpus lives: a local folder or an object store, behind the eight calls the layout needs.

Nothing is ever seen half-written under its final name. A local write goes to a temporary name, is flushed to the disk
and renamed; an object appears in its store when the whole of it has arrived.
"""

import os
import uuid
from pathlib import Path
from typing import Protocol

import fsspec


class Storage(Protocol):
    """Paths are relative to `root`, with `/` between their parts."""

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

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing there is fine."""
        ...

    def unfinished(self) -> list[str]:
        """Paths of what killed writers left under temporary names, sorted."""
        ...


_PARTIAL = ".partial"


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
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{uuid.uuid4().hex}{_PARTIAL}"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)  # a full disk would stay full of halves
            raise
        return temporary


class ObjectStorage:
    """A prefix of an object store, reached through fsspec; addresses and secrets come from the environment."""

    def __init__(self, uri: str) -> None:
        self.root = uri.rstrip("/")
        self._system, self._prefix = fsspec.core.url_to_fs(self.root)

    def _key(self, path: str) -> str:
        if ".." in path.split("/") or path.startswith("/"):
            raise ValueError(f"the path {path!r} leaves its storage")
        return f"{self._prefix}/{path}"

    def read(self, path: str) -> bytes:
        return self._system.cat_file(self._key(path))

    def write(self, path: str, data: bytes) -> None:
        self._system.pipe_file(self._key(path), data)

    def write_if_absent(self, path: str, data: bytes) -> bool:
        try:
            self._system.pipe_file(self._key(path), data, mode="create")  # If-None-Match: the store decides
        except FileExistsError:
            return False
        return True

    def exists(self, path: str) -> bool:
        self._system.invalidate_cache()
        return self._system.exists(self._key(path))

    def size_bytes(self, path: str) -> int:
        return int(self._system.size(self._key(path)))

    def names(self, folder: str) -> list[str]:
        self._system.invalidate_cache()
        try:
            entries = self._system.ls(self._key(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    def delete(self, path: str) -> None:
        try:
            self._system.rm(self._key(path), recursive=True)
        except FileNotFoundError:
            return

    def unfinished(self) -> list[str]:
        return []  # an object is there when the whole of it has arrived


def open_storage(uri: str | Path) -> Storage:
    """The storage behind a path or a URI such as `s3://bucket/corpus`."""
    text = str(uri)
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
