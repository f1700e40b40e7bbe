"""What a stage declares: the rows it takes and gives, and what it needs to run.

A stage is a frozen dataclass, so that it can be printed, compared, hashed into a unit's id and sent to a worker. What
it loads there (a model, an engine) is a separate object, made once per actor by `load`.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pipelines.rows import Rejection

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a stage occupies. Neighbouring stages with equal resources share their actors."""

    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[Row, Result]):
    """One step of the flow. `process` yields rows for the next stage, and a Rejection for every row it leaves out."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Counts up whenever the same input would give another result: committed units are then made again."""

    resources: Resources = Resources()

    def load(self) -> Any:
        """Whatever `process` needs that is costly to make; called once per actor."""
        return None

    def look_ahead(self, rows: Sequence[Row], model: Any) -> Any:  # noqa: ARG002
        """The `model` for `process`, once it has seen all rows of a unit: where many at once are quicker than each."""
        return model

    @abstractmethod
    def process(self, row: Row, model: Any) -> Iterator[Result | Rejection]:
        """The results of one row; `model` is what `load` returned."""

    def fingerprint(self) -> dict[str, Any]:
        """The part of this stage that decides its result: everything but where it runs."""
        settings = {entry.name: _identity(getattr(self, entry.name)) for entry in fields(self)}
        settings.pop("resources")
        return {"stage": self.name, "version": self.version, **settings}


def _identity(value: Any) -> Any:
    """What of a setting decides the result: its own `fingerprint` where it has one."""
    if hasattr(value, "fingerprint"):
        return value.fingerprint()
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-able value, the same whatever the order of its keys: 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
