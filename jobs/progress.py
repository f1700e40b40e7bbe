"""What a job says while it works: bars on a terminal, plain lines elsewhere, nothing with `--json`.

A job speaks to the small `Progress` Protocol; only this file knows what a terminal is.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Bar(Protocol):
    """One piece of work under way."""

    def update(self, done: float, total: float, note: str = "") -> None: ...


class Progress(Protocol):
    """Where a job says what it does."""

    def say(self, line: str) -> None:
        """One line that stays."""
        ...

    def bar(self, what: str) -> AbstractContextManager[Bar]:
        """A bar while the `with` block runs."""
        ...


class Silent:
    """For `--json` and for programs."""

    def say(self, line: str) -> None:
        del line

    @contextmanager
    def bar(self, what: str) -> Iterator[Bar]:
        del what
        yield _NoBar()


class _NoBar:
    def update(self, done: float, total: float, note: str = "") -> None:
        del done, total, note


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
        self._told = time.monotonic()
        self.last = ""

    def update(self, done: float, total: float, note: str = "") -> None:
        self.last = f" ({note})" if note else ""
        if time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            self._plain.say(f"{self._what}: {done:g} of {total:g}{self.last}")


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
        self.total = 0.0

    def update(self, done: float, total: float, note: str = "") -> None:
        self.total = total
        self._shown.update(self._task, completed=done, total=total, note=note)  # type: ignore[arg-type]


def progress_for(*, json_output: bool) -> Progress:
    """Bars on a terminal, lines elsewhere, silence where a machine reads."""
    if json_output:
        return Silent()
    return Terminal() if sys.stderr.isatty() else Plain()
