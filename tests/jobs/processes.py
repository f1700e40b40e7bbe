"""The processes that a test's Ray started, as Linux lists them."""

import os
from contextlib import suppress
from pathlib import Path


def processes_titled(part: str) -> list[int]:
    """Process ids of this process's descendants whose title holds `part`, the busiest first."""
    parents, titles, ticks = {}, {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may end between being listed and being looked at.
        with suppress(OSError):
            # Behind the name, which may hold anything: state, parent, ..., and as 12th the ticks spent in user mode.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            pid = int(folder.name)
            parents[pid], ticks[pid] = int(fields[1]), int(fields[11])
            titles[pid] = (folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    found = [pid for pid, title in titles.items() if part in title and _descends(pid, parents)]
    return sorted(found, key=lambda pid: -ticks[pid])


def parent_of(pid: int) -> int:
    """The process that started `pid`."""
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False
