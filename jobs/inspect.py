"""Checkpoint files to what they are, one by one, without loading anything in them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gsv_core.checkpoints.releases import release_of
from gsv_core.checkpoints.upstream_recognition import FileDescription, inspect_file, require


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """Files that could be described, whole or not, and one line for each that was refused."""

    descriptions: tuple[FileDescription, ...]
    refusals: tuple[str, ...]

    @property
    def damaged(self) -> tuple[FileDescription, ...]:
        """Those that lack what they should have, or contradict themselves."""
        return tuple(description for description in self.descriptions if description.problems)


def inspect_files(paths: Iterable[Path], *, expected: str | None = None) -> Inspected:
    """What each of `paths` is; with `expected`, one of another release is refused.

    Raises:
        ValueError: `expected` is no release.
    """
    release = release_of(expected) if expected is not None else None
    descriptions, refusals = [], []
    for path in paths:
        try:
            description = inspect_file(path)
            if release is not None:
                require(description, release, description.part)
        except ValueError as error:
            refusals.append(" ".join(str(error).split()))
        else:
            descriptions.append(description)
    return Inspected(descriptions=tuple(descriptions), refusals=tuple(refusals))
