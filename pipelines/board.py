"""Where workers say what they are at: progress for people, and what killed a worker that cannot say so itself.

A recording that makes a decoder or a model crash takes its worker with it, and Ray starts the worker and its unit
again, for ever. So a unit that comes back after a death says which row it is about to take through which stage; where
it dies three times in the same place, the recording of that row is to blame. Deaths from outside (a node that is taken
away) fall in different places.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

MOST_DEATHS = 3
"""Deaths in one and the same place that make a recording the cause."""


@dataclass(frozen=True)
class Place:
    """A row on its way through a stage: the `number`-th of its unit, of the recording at `uri`; -1 is all at once."""

    stage: str
    number: int
    uri: str


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a worker is told at the start of a unit: recordings to leave out, and whether to report each place."""

    deadly: tuple[Place, ...] = ()
    report_places: bool = False


@dataclass
class _Attempts:
    begun: bool = False
    deaths: int = 0
    place: Place | None = None
    deaths_at: dict[Place, int] = field(default_factory=dict)
    deadly: list[Place] = field(default_factory=list)


class Board:
    """Rows per stage, and the attempts at each unit. One for all workers of a run; plain, so that it can be tested."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._attempts: dict[Hashable, _Attempts] = {}

    def add(self, stage: str, rows: int) -> None:
        self._rows[stage] = self._rows.get(stage, 0) + rows

    def read(self) -> dict[str, int]:
        return dict(self._rows)

    def begin(self, work: Hashable) -> Orders:
        """A worker takes `work` up; if an earlier one began it and never ended, that one died."""
        attempts = self._attempts.setdefault(work, _Attempts())
        if attempts.begun:
            attempts.deaths += 1
            if attempts.place is not None:
                deaths = attempts.deaths_at[attempts.place] = attempts.deaths_at.get(attempts.place, 0) + 1
                if deaths >= MOST_DEATHS:
                    attempts.deadly.append(attempts.place)
        attempts.begun, attempts.place = True, None
        return Orders(deadly=tuple(attempts.deadly), report_places=attempts.deaths > 0)

    def at(self, work: Hashable, place: Place) -> None:
        """The worker is about to take a row into a stage."""
        # Unknown to a board that was itself killed and started again in the meantime.
        attempts = self._attempts.setdefault(work, _Attempts(begun=True))
        attempts.place = place

    def end(self, work: Hashable) -> None:
        """The worker is through with `work`, well or with an error of its own."""
        self._attempts.pop(work, None)
