"""The folder a job works in: where corpus, registry and logs lie, and the lock that keeps a second job out.

The corpus lies in the folder, or in an object store whose address the folder remembers. Runs are always local.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipelines.lease import held
from pipelines.objects import object_address
from pipelines.storage import JoinedStorage, LocalStorage, Storage, open_storage

_LEASE_PAUSE_S = 0.5
"""Between two looks whether another job has ended."""
_REMEMBERED = "corpus-uri.txt"


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """One workspace; `root` exists and can be written once `open` has returned it."""

    root: Path
    corpus_uri: str | None = None
    """Where the corpus lies, if not in this folder."""

    @classmethod
    def open(cls, root: Path, corpus_uri: str | None = None) -> "Workspace":
        """Make the folder if need be. A `corpus_uri` once given is remembered in it.

        Raises:
            ValueError: it cannot be written, has a name that cannot stand in the address of a database, or has its
                corpus elsewhere already.
        """
        if set("%?#") & set(str(root.absolute())):
            raise ValueError(
                f"--workspace {root}: %, ? and # mean something in the registry's address; choose another name"
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / f".writable-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"--workspace {root}: cannot write there ({error.strerror}); give a folder you may write to"
            ) from error
        return cls(root=root.absolute(), corpus_uri=_remembered(root, corpus_uri))

    @property
    def corpus(self) -> Path:
        """The local folder of the corpus; of one in an object store it holds runs and report only."""
        return self.root / "corpus"

    @property
    def corpus_place(self) -> str:
        """Folder or address of the corpus, as every worker may open it."""
        return self.corpus_uri or str(self.corpus)

    @property
    def storage(self) -> Storage:
        """The corpus, wherever it lies."""
        local = LocalStorage(self.corpus)
        return local if self.corpus_uri is None else JoinedStorage(open_storage(self.corpus_uri), local)

    @property
    def report(self) -> Path:
        return self.corpus / "report" / "index.html"

    @property
    def default_tracking_uri(self) -> str:
        return f"sqlite:///{self.root / 'mlflow.db'}"

    def voice(self, voice: str) -> Path:
        return self.corpus / "voices" / voice

    def run(self, voice: str, run_id: str) -> Path:
        return self.voice(voice) / "runs" / run_id

    @contextmanager
    def lease(self, *, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the workspace and its corpus alone, after waiting up to `wait_s` for another job to end.

        The lock dies with its process, whatever killed it, and no clock is asked for the time.

        Raises:
            ValueError: another job still holds one of them.
        """
        give_up = time.monotonic() + wait_s
        with (self.root / ".lock").open("a+") as file:
            while not _locked(file):
                if time.monotonic() >= give_up:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise ValueError(
                        f"--workspace {self.root}: another job (process {holder}) is at work there; wait for it, or "
                        "give another workspace"
                    )
                time.sleep(min(_LEASE_PAUSE_S, max(0.0, give_up - time.monotonic())))
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            if self.corpus_uri is None:
                yield
                return
            with held(self.storage, wait_s=max(0.0, give_up - time.monotonic())):
                yield


def _remembered(root: Path, corpus_uri: str | None) -> str | None:
    """The address of this workspace's corpus; None where it lies in the folder."""
    path = root / _REMEMBERED
    before = path.read_text(encoding="utf-8").strip() if path.is_file() else None
    if corpus_uri is None or corpus_uri.rstrip("/") == before:
        return before
    wanted = corpus_uri.rstrip("/")
    if object_address(wanted) != wanted:
        raise ValueError(f"--corpus {corpus_uri}: expected an address such as s3://bucket/corpus")
    if before is not None or (root / "corpus" / "corpus.json").is_file():
        raise ValueError(
            f"--corpus {corpus_uri}: the corpus of workspace {root} lies in {before or root / 'corpus'}; give another "
            "--workspace"
        )
    path.write_text(f"{wanted}\n", encoding="utf-8")
    return wanted


def _locked(file: IO[str]) -> bool:
    """Whether the lock on `file` is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
