"""Voices whose consent was withdrawn: `forgotten/<voice>.json` in the corpus, a record without any of their content."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from pipelines.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """Who was erased, when and why, by which consent it had been there, and how much there was."""

    voice: str
    when: str
    """ISO 8601, UTC."""
    reason: str
    consent_id: str | None
    counts: dict[str, int]

    @property
    def path(self) -> str:
        return f"forgotten/{self.voice}.json"

    def to_json(self) -> bytes:
        return json.dumps({"schema_version": 1, **asdict(self)}, indent=1, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        record = json.loads(data)
        record.pop("schema_version")
        return cls(**record)


def read_forgotten(corpus: Storage) -> list[Forgotten]:
    """Every voice that was forgotten, by name."""
    names = sorted(name for name in corpus.names("forgotten") if name.endswith(".json"))
    return [Forgotten.from_json(corpus.read(f"forgotten/{name}")) for name in names]
