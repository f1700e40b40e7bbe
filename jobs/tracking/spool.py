"""What a run has to tell the tracker, on disk in its folder, until it was told.

`telemetry/spool.jsonl` is only ever appended to: numbers with their step and time, files, and how the run stands.
`telemetry/sent.json` says for each store how many bytes of it have arrived there. Every line has its own time, so that
a line that is sent again, because the word that it arrived was lost, is the same entry to MLflow and not a second one.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsv_core.checkpoints.weights import write_json

FOLDER = "telemetry"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: `metrics` after `step` steps, a `file` (a path within the run's telemetry), or a `status`."""

    time_ms: int
    step: int = 0
    metrics: Mapping[str, float] | None = None
    file: str | None = None
    status: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How much of a spool one store has: its run, and the bytes that arrived."""

    run_id: str
    offset: int


class Spool:
    """The spool of the run in `run_dir`. One process appends at a time; any may read and send."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / FOLDER
        self.path = self.folder / "spool.jsonl"

    def append(self, line: Line) -> None:
        """Put `line` at the end, in one write, so that a process killed in it leaves a torn last line at most."""
        record = {key: value for key, value in vars(line).items() if value is not None}
        with self.path.open("ab") as file:
            file.write(json.dumps(record, sort_keys=True).encode() + b"\n")

    def open(self) -> set[tuple[str, int]]:
        """Make the folder, or mend what a killed process left; the (name, step) of every number that is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            data = self.path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self.path, whole)
        return self.points()

    def points(self) -> set[tuple[str, int]]:
        """The (name, step) of every number."""
        return {(name, line.step) for line, _ in self.lines() for name in line.metrics or {}}

    def lines(self, start: int = 0) -> Iterator[tuple[Line, int]]:
        """The whole lines from byte `start` on, each with the byte behind it."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(start)
            for data in file:
                if not data.endswith(b"\n"):
                    return
                start += len(data)
                yield Line(**json.loads(data)), start

    def sent(self, target: str) -> Sent | None:
        """How much the store and experiment named `target` have; None before anything."""
        record = self._marks().get(target)
        return Sent(**record) if record else None

    def mark(self, target: str, sent: Sent) -> None:
        """Remember what `target` has now."""
        write_json(self.folder / "sent.json", {**self._marks(), target: vars(sent)})

    def unsent(self, target: str) -> bool:
        """Whether there is anything that `target` has not."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        sent = self.sent(target)
        return size > (sent.offset if sent else 0)

    def _marks(self) -> dict[str, Any]:
        path = self.folder / "sent.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
