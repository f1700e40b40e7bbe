"""A second home for a run: its newest checkpoints and its saves, in any storage that every node reaches.

A thread copies what is new while the voice is trained, so that a slow store never slows a step and a dead one only
leaves the copy behind; what the local folder drops is dropped there as well. Where the local folder is gone, the run
begins with what is there. Small enough to read: `<uri>/<voice>/<run_id>/` has the files of the run folder.
"""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gsv_core.checkpoints.weights import write_atomically
from pipelines.storage import Storage, StorageError, open_storage

logger = logging.getLogger(__name__)

_COPY_EVERY_S = 2.0
_FOLDERS = ("checkpoints/semantic", "checkpoints/wave", "weights", "")
"""`trained.json` lies in the last one: it may only be there when all others are."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.(pt|safetensors|json|jsonl|flac)")
_LAST = "trained.json"


class Mirror:
    """The files of `run_dir` and their copies below `voice/run_id` of a storage."""

    def __init__(self, run_dir: Path, storage: Storage, place: str) -> None:
        self._run_dir, self._storage, self._place = run_dir, storage, place
        self._copied: dict[str, tuple[int, int]] = {}

    @classmethod
    def of(cls, run_dir: Path, uri: str, voice: str, run_id: str) -> "Mirror":
        return cls(run_dir, open_storage(uri), f"{voice}/{run_id}")

    def fetch(self) -> bool:
        """Fill a local run folder that has nothing to go on from; says whether anything came.

        Raises:
            StorageError: the storage does not answer; a run that may be half done is never begun anew for that.
        """
        if (self._run_dir / _LAST).is_file() or any((self._run_dir / "checkpoints").glob("*/*.pt")):
            return False
        came = False
        for folder in _FOLDERS:
            for name in sorted(self._names(folder), key=lambda name: name == _LAST):
                self._fetch(folder, name)
                came = True
        return came

    def _fetch(self, folder: str, name: str) -> None:
        data = self._storage.read(self._at(folder, name))

        def write(path: Path) -> None:
            path.write_bytes(data)

        write_atomically(self._run_dir / folder / name, write)

    def copy(self) -> None:
        """Bring the storage up to date: first what is new, then away with what is gone.

        Raises:
            StorageError: the storage took it not.
        """
        local = {folder: self._local(folder) for folder in _FOLDERS}
        for folder, files in local.items():
            for name, stamp in sorted(files.items(), key=lambda entry: entry[0] == _LAST):
                key = self._at(folder, name)
                if self._copied.get(key) == stamp:
                    continue
                try:
                    data = (self._run_dir / folder / name).read_bytes()
                except FileNotFoundError:
                    continue  # an older checkpoint, removed since we looked
                self._storage.write(key, data)
                self._copied[key] = stamp
        for folder in _FOLDERS[:-1]:
            for name in set(self._names(folder)) - set(self._local(folder)):
                self._storage.delete(self._at(folder, name))
                self._copied.pop(self._at(folder, name), None)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Copy in a thread of its own while the block runs, and once more at its end, however it ends."""
        done = threading.Event()

        def keep() -> None:
            while not done.wait(_COPY_EVERY_S):
                self._try_to_copy()

        thread = threading.Thread(target=keep, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._try_to_copy()

    def _try_to_copy(self) -> None:
        try:
            self.copy()
        except (StorageError, OSError) as error:
            logger.warning("run %s could not be copied to %s: %s", self._place, self._storage.root, error)

    def _local(self, folder: str) -> dict[str, tuple[int, int]]:
        """Name → (size, time of change) of the files that belong into the copy."""
        place = self._run_dir / folder
        if not place.is_dir():
            return {}
        found = {}
        for path in place.iterdir():
            if _NAME.fullmatch(path.name) and path.is_file():
                stat = path.stat()
                found[path.name] = (stat.st_size, stat.st_mtime_ns)
        return found

    def _names(self, folder: str) -> list[str]:
        """Names that the storage has in `folder`; only such as we write, whoever put others there."""
        place = f"{self._place}/{folder}".rstrip("/")
        return [name for name in self._storage.names(place) if _NAME.fullmatch(name)]

    def _at(self, folder: str, name: str) -> str:
        return "/".join(part for part in (self._place, folder, name) if part)
