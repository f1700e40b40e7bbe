"""What of a corpus no current config refers to any more: units of earlier configs, recordings that were taken away.

`corpus.json` names the units of the last run. Anything of another unit is left over, whether it was committed or not;
so are files under temporary names. Selections are never left over: what was once held out is known from them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.storage import Storage
from pipelines.units import Unit


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """One file that can go, and why."""

    path: str
    size_bytes: int
    reason: str


def find_leftovers(corpus: Storage) -> list[Leftover]:
    """Everything that can be removed, in order of path.

    Raises:
        ValueError: there is no corpus to say what is current.
    """
    if not corpus.exists("corpus.json"):
        raise ValueError(f"{corpus.root}: no corpus there, so nothing says what is in use")
    description = json.loads(corpus.read("corpus.json"))
    current, voices = set(description["units"]), set(description["voices"])
    found = [
        Leftover(path=path, size_bytes=corpus.size_bytes(path), reason="its writer was killed")
        for path in corpus.unfinished()
    ]
    found += _of_plan(corpus, current)
    for voice in corpus.names("voices"):
        gone = "its voice was not handed in any more" if voice not in voices else "of an earlier config or recording"
        for folder in ("shards", "manifest", "rejected", "units"):
            found += _of_folder(f"voices/{voice}/{folder}", corpus, current, gone)
    return sorted(found, key=lambda leftover: leftover.path)


def remove(leftovers: list[Leftover], corpus: Storage) -> None:
    """Delete them, marks first: a unit without its mark is one that was never made."""
    for leftover in sorted(leftovers, key=lambda leftover: (not leftover.path.endswith(".done"), leftover.path)):
        corpus.delete(leftover.path)


def _of_plan(corpus: Storage, current: set[str]) -> Iterator[Leftover]:
    """Files of the plan in which no unit is current."""
    for name in corpus.names("plan"):
        path = f"plan/{name}"
        lines = corpus.read(path).splitlines()
        if not any(Unit.from_json(line).unit_id in current for line in lines):
            yield Leftover(path=path, size_bytes=corpus.size_bytes(path), reason="planned, and not current")


def _of_folder(folder: str, corpus: Storage, current: set[str], reason: str) -> Iterator[Leftover]:
    for name in corpus.names(folder):
        unit_id = name.partition(".")[0].partition("-")[0]
        # What could not even be read belongs to no unit, and is written anew by every run.
        if unit_id not in current and unit_id != "inventory":
            path = f"{folder}/{name}"
            yield Leftover(path=path, size_bytes=corpus.size_bytes(path), reason=reason)
