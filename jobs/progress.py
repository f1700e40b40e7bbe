"""What a job says while it works: bars on a terminal, plain lines elsewhere, a JSON object per line with `--json`.

A job speaks to the small `Progress` Protocol; only this file knows what a terminal is. All of it goes to standard
error: standard output holds the result alone.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

_PAUSE_S = 10.0
"""Between two lines about the same work."""


class Bar(Protocol):
    """One piece of work under way."""

    def update(self, done: float, total: float, note: str = "", numbers: Mapping[str, float] | None = None) -> None:
        """`note` is for people, `numbers` (such as `{"recordings": 12, "hours": 1.5}`) for machines.

        A job that knows better than "as fast as until now" gives its own `seconds_left` among the numbers.
        """
        ...


class Progress(Protocol):
    """Where a job says what it does."""

    def say(self, line: str) -> None:
        """One line that stays."""
        ...

    def bar(self, what: str) -> AbstractContextManager[Bar]:
        """A bar while the `with` block runs."""
        ...


class Silent:
    """For programs."""

    def say(self, line: str) -> None:
        del line

    @contextmanager
    def bar(self, what: str) -> Iterator[Bar]:
        del what
        yield _NoBar()


class _NoBar:
    def update(self, done: float, total: float, note: str = "", numbers: Mapping[str, float] | None = None) -> None:
        del done, total, note, numbers


class Lines:
    """For `--json`: an object per line when work begins and ends, and every ten seconds between."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def say(self, line: str) -> None:
        self.tell({"event": "message", "message": line})

    @contextmanager
    def bar(self, what: str) -> Iterator[Bar]:
        self.tell({"event": "begin", "what": what})
        bar = _LinesBar(self, what)
        yield bar
        self.tell({**bar.last, "event": "end", "what": what, "seconds": round(time.monotonic() - bar.started, 1)})

    def tell(self, record: Mapping[str, object]) -> None:
        stream = self._stream or sys.stderr
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        stream.flush()


class _LinesBar:
    def __init__(self, lines: Lines, what: str) -> None:
        self._lines, self._what = lines, what
        self.started = self._told = time.monotonic()
        self.last: dict[str, object] = {}

    def update(self, done: float, total: float, note: str = "", numbers: Mapping[str, float] | None = None) -> None:
        self.last = {"done": done, "total": total, **(numbers or {}), **({"note": note} if note else {})}
        now = time.monotonic()
        if now - self._told > _PAUSE_S:
            self._told = now
            left = seconds_left(done, total, now - self.started, numbers)
            times = {"seconds": round(now - self.started, 1), "seconds_left": None if left is None else round(left)}
            self._lines.tell({"event": "progress", "what": self._what, **self.last, **times})


class Plain:
    """Lines for a log: what begins, how far it is every ten seconds, and how long it took."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def say(self, line: str) -> None:
        stream = self._stream or sys.stderr  # looked up each time: it may be redirected meanwhile
        stream.write(line + "\n")
        stream.flush()

    @contextmanager
    def bar(self, what: str) -> Iterator[Bar]:
        started = time.monotonic()
        bar = _PlainBar(self, what)
        yield bar
        self.say(f"{what}: done in {time.monotonic() - started:.1f} s{bar.last}")


class _PlainBar:
    def __init__(self, plain: Plain, what: str) -> None:
        self._plain, self._what = plain, what
        self._started = self._told = time.monotonic()
        self.last = ""

    def update(self, done: float, total: float, note: str = "", numbers: Mapping[str, float] | None = None) -> None:
        self.last = f" ({note})" if note else ""
        now = time.monotonic()
        if now - self._told > _PAUSE_S:
            self._told = now
            left = time_left(seconds_left(done, total, now - self._started, numbers))
            self._plain.say(f"{self._what}: {done:g} of {total:g}{left and f', {left}'}{self.last}")


class Terminal:
    """Bars that move, one below the other, under the lines that stay."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)

    @contextmanager
    def bar(self, what: str) -> Iterator[Bar]:
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with RichProgress(*columns, console=self._console) as shown:
            task = shown.add_task(f"{what:<12}", total=None, note="")
            bar = _RichBar(shown, task)
            yield bar
            shown.update(task, total=bar.total or 1, completed=bar.total or 1)


class _RichBar:
    def __init__(self, shown: RichProgress, task: object) -> None:
        self._shown, self._task = shown, task
        self._started = time.monotonic()
        self.total = 0.0

    def update(self, done: float, total: float, note: str = "", numbers: Mapping[str, float] | None = None) -> None:
        self.total = total
        left = time_left(seconds_left(done, total, time.monotonic() - self._started, numbers))
        shown = " · ".join(part for part in (left, note) if part)
        self._shown.update(self._task, completed=done, total=total, note=shown)  # type: ignore[arg-type]


def progress_for(*, json_output: bool) -> Progress:
    """Bars on a terminal, lines elsewhere, JSON where a machine reads."""
    if json_output:
        return Lines()
    return Terminal() if sys.stderr.isatty() else Plain()


def seconds_left(
    done: float, total: float, elapsed_s: float, numbers: Mapping[str, float] | None = None
) -> float | None:
    """How long the rest takes, by the job's own `numbers` or if it goes on as it went; None while nothing tells."""
    if numbers and "seconds_left" in numbers:
        return numbers["seconds_left"]
    return elapsed_s * (total - done) / done if 0 < done <= total else None


def time_left(seconds: float | None) -> str:
    """Seconds in words for people; empty where nothing is known or nothing is left."""
    if not seconds:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5_400 else f"{seconds / 3_600:.1f} h left"
