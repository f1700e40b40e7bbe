"""What a number must meet: dataclasses whose fields `least_<number>` and `most_<number>` are limits; None sets none.

A number that could not be computed is None, and breaks no bound.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One limit, set or not."""

    name: str
    limit: float | None

    @property
    def number(self) -> str:
        return self.name.split("_", 1)[1]

    def broken_by(self, value: float | None) -> bool:
        """Whether `value` lies beyond the limit; the limit itself is allowed."""
        if self.limit is None or value is None:
            return False
        return value < self.limit if self.name.startswith("least_") else value > self.limit

    def says(self, value: float) -> str:
        word = "at least" if self.name.startswith("least_") else "at most"
        return f"{self.number} is {value:.3g}, {word} {self.limit:g} is needed"


def bounds_in(limits: Any) -> Iterator[Bound]:
    """The fields of a dataclass of limits, in order."""
    return (Bound(name=name, limit=limit) for name, limit in vars(limits).items())


def first_broken(limits: Any, values: Mapping[str, float | None]) -> Bound | None:
    """The first bound that one of `values` (number → value) breaks."""
    return next((bound for bound in bounds_in(limits) if bound.broken_by(values[bound.number])), None)
