"""Drills: the real program in a process of its own, part of it killed at a random moment, and what is left of it."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 240.0


@dataclass(frozen=True)
class Undisturbed:
    """Recordings, the corpus that a run without any fault made of them, and how long that worked after planning."""

    recordings: Path
    files: Mapping[str, str]
    work_s: float


@dataclass(frozen=True)
class Outcome:
    """What became of one run of the program."""

    returncode: int
    stdout: str
    stderr: str


def several_voices(demo_voices: Path, folder: Path) -> Path:
    """Four voices with a recording each: a unit each, a few seconds of work each."""
    for voice, name in {"ada": "day_1.wav", "ben": "day_2.flac", "cyd": "day_1.wav", "dan": "day_2.flac"}.items():
        (folder / voice).mkdir(parents=True)
        (folder / voice / "voice.yaml").write_text("language: en\n", encoding="utf-8")
        audio = demo_voices / "ada" / name
        for path in (audio, audio.with_suffix(".txt")):
            (folder / voice / path.name).write_bytes(path.read_bytes())
    return folder


def digests(workspace: Path) -> dict[str, str]:
    """Path → SHA-256 of every file of the corpus, but for what killed writers left under temporary names."""
    corpus = workspace / "corpus"
    return {
        str(path.relative_to(corpus)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(corpus.rglob("*"))
        if path.is_file() and not (path.name.startswith(".") and path.name.endswith(".partial"))
    }


class Program:
    """`gsv prepare` at work."""

    def __init__(
        self, recordings: Path, workspace: Path, *more: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.workspace = workspace
        workspace.mkdir(parents=True, exist_ok=True)
        self._out, self._err = workspace / "stdout.txt", workspace / "stderr.txt"
        command = [sys.executable, "-m", "jobs.cli", "prepare", str(recordings), "--workspace", str(workspace)]
        command += ["--set", "flow.engines.quality=none"]  # half of all the work, and nothing that a fault could tell
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, "--json", *more],
                cwd=ROOT,
                stdout=out,
                stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Whether it came to that before the program ended."""
        give_up = time.monotonic() + _PATIENCE_S
        while not reached():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < give_up, "the program hangs"
            time.sleep(0.02)
        return True

    def planned(self) -> bool:
        return bool(list((self.workspace / "corpus" / "plan").glob("*.jsonl")))

    def workers(self, part: str = "ray::") -> list[int]:
        """Its Ray workers whose title holds `part`. Not the agents of a node: with one of them the node dies."""
        titles = {pid: _title(pid) for pid in below(self.process.pid)}
        return sorted(pid for pid, title in titles.items() if part in title and _is_worker(title))

    def ray_processes(self, part: str) -> list[int]:
        """Processes of its Ray node itself, whose command line holds `part`."""
        return sorted(pid for pid in below(self.process.pid) if part in _title(pid) and not _is_worker(_title(pid)))

    def kill(self) -> None:
        """kill -9 of the driver; its workers are waited for: they must not stay."""
        started = self.workers()
        self.process.kill()
        self.process.wait()
        give_up = time.monotonic() + 60
        while left := [title for title in map(_title, started) if _is_worker(title)]:
            assert time.monotonic() < give_up, f"a killed driver left {left} behind"
            time.sleep(0.1)

    def end(self) -> Outcome:
        """Wait for it to end by itself."""
        returncode = self.process.wait(timeout=_PATIENCE_S)
        return Outcome(
            returncode,
            self._out.read_text(encoding="utf-8", errors="replace"),
            self._err.read_text(encoding="utf-8", errors="replace"),
        )


def undisturbed(recordings: Path, workspace: Path, *more: str) -> Undisturbed:
    """The corpus to compare with."""
    program = Program(recordings, workspace, *more)
    assert program.wait_until(program.planned)
    started = time.monotonic()
    outcome = program.end()
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return Undisturbed(recordings=recordings, files=digests(workspace), work_s=time.monotonic() - started)


def disturbed(
    made: Undisturbed,
    workspace: Path,
    strike: Callable[[Program], bool],
    seed: int,
    *more: str,
) -> Program:
    """A run that `strike` hit at a moment that `seed` chose; where it came too late or found nothing, sooner.

    `strike` says whether it hit something.
    """
    share = random.Random(seed).uniform(0.0, 0.95)
    for attempt in range(4):
        program = Program(made.recordings, workspace / str(attempt), *more)
        assert program.wait_until(program.planned)
        moment = time.monotonic() + share * made.work_s
        if program.wait_until(lambda at=moment: time.monotonic() >= at) and program.wait_until(
            lambda struck=program: strike(struck)
        ):
            return program
        share /= 2
    raise AssertionError("the program always ended before it could be struck")


def below(pid: int) -> set[int]:
    """Every process that descends from `pid`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    mine = {pid}
    while more := {child for child, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return mine - {pid}


def kill(pid: int) -> bool:
    """kill -9; whether there was something to kill."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _title(pid: int) -> str:
    """The command line of a process; empty where it is gone, or only waits to be buried."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def _is_worker(title: str) -> bool:
    return title.startswith("ray::") and "Agent" not in title
