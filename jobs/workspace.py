"""The folder a job works in: where corpus, registry and logs lie, and the lock that keeps a second job out."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_LEASE_PAUSE_S = 0.5
"""Between two looks whether another job has ended."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """One workspace; `root` exists and can be written once `open` has returned it."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> "Workspace":
        """Make the folder if need be.

        Raises:
            ValueError: it cannot be written, or has a name that cannot stand in the address of a database.
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
        return cls(root=root.absolute())

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

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
        """Hold the workspace alone, after waiting up to `wait_s` for another job to end.

        The lock dies with its process, whatever killed it, and no clock is asked for the time.

        Raises:
            ValueError: another job still holds it.
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
            yield


def _locked(file: IO[str]) -> bool:
    """Whether the lock on `file` is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
