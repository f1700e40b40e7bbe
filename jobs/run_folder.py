"""A finished run of one voice on disk, `<corpus>/voices/<voice>/runs/<run_id>/`, as numbers to log and register.

`run.json` says what was trained and how, `curves.jsonl` how it went, `scores.json` what each saved pair is worth,
`cost.json` what it took, and `done.json`, written last, that all of it is there.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.measures import MEASURES

SCHEMA_VERSION = 1
HALVES = ("semantic", "wave")
"""The two halves of a pair, as `scores.json` and the names of the weights call them."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of a curve: `name` is `<phase>/<metric>`, with `held_out/` before it for recordings unseen."""

    name: str
    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What the JSON files of a run say; audio and weights stay on the disk."""

    path: Path
    run: dict[str, Any]
    scores: dict[str, Any]
    cost: dict[str, float]
    prompt: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "RunFolder":
        """The run in the folder `path`.

        Raises:
            ValueError: the run is not finished, one of its files is missing or no JSON, or a newer gsv-fleet wrote it.
        """
        if not (path / "done.json").is_file():
            raise ValueError(f"{path} holds no finished run (done.json is missing); train and evaluate the voice first")
        run, scores, cost, prompt = (
            _read_object(path / name) for name in ("run.json", "scores.json", "cost.json", "prompt.json")
        )
        for name, record in (("run.json", run), ("scores.json", scores)):
            if record.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
                raise ValueError(
                    f"{path / name} was written by a newer gsv-fleet (schema {record['schema_version']}, "
                    f"known: {SCHEMA_VERSION}); update this one"
                )
        return cls(path=path, run=run, scores=scores, cost=cost, prompt=prompt)

    @property
    def run_id(self) -> str:
        """The digest of selection, base, recipe, seed and trainer version."""
        return str(self.run["run_id"])

    @property
    def voice(self) -> str:
        """The voice's name, safe as a path segment and a registry name."""
        return str(self.run["voice"])

    @property
    def best_pair(self) -> dict[str, Any]:
        """The scores of the chosen pair.

        Raises:
            ValueError: the choice names a pair that was not scored.
        """
        chosen = [self.scores["best"][half] for half in HALVES]
        for pair in self.scores["pairs"]:
            if [pair[half] for half in HALVES] == chosen:
                return dict(pair)
        raise ValueError(f"{self.path / 'scores.json'}: the best pair {chosen} is not among the scored ones")

    def weights_path(self, half: str) -> Path:
        """The saved weights of one half, `semantic` or `wave`, of the chosen pair.

        Raises:
            ValueError: they are not in the folder.
        """
        path = self.path / "weights" / f"{self.scores['best'][half]}.safetensors"
        if not path.is_file():
            raise ValueError(f"{path} is missing, but scores.json chose it; train the voice again")
        return path

    def curves(self) -> Iterator[Point]:
        """Every number of `curves.jsonl`, in the order it was written."""
        lines = (self.path / "curves.jsonl").read_text(encoding="utf-8").splitlines()
        for record in map(json.loads, filter(None, lines)):
            yield from points_of(record)

    @property
    def environment(self) -> dict[str, Any]:
        """Where it was trained; empty where that was not written down."""
        path = self.path / "environment.json"
        return _read_object(path) if path.is_file() else {}

    @property
    def engines(self) -> dict[str, str]:
        """What measured: part → name, without those that were not there."""
        return {part: str(name) for part, name in (self.scores.get("engines") or {}).items() if name}

    @property
    def note(self) -> str | None:
        """What must be said of this speech wherever it is offered."""
        return self.scores.get("speech") or self.run.get("speech")

    def describe(self) -> str:
        """The run in Markdown: what it is, its scores beside the untuned base and real recordings, and who measured."""
        columns = {
            "this version": numbers_of(self.best_pair),
            "untuned base": numbers_of(self.scores.get("base") or {}),
            "real recordings": numbers_of(self.scores.get("ceiling") or {}),
        }
        engines = ", ".join(f"{part.replace('_', ' ')}: {name}" for part, name in self.engines.items())
        best = self.scores["best"]
        lines = [f"**{self.voice}** on base {self.run['release']}, run `{self.run_id}`.", ""]
        if self.note:
            lines += [f"**{self.note.rstrip('.')}.**", ""]
        lines += [f"| | {' | '.join(columns)} |", "|---|---:|---:|---:|"]
        for measure in MEASURES:
            values = [record.get(measure.key) for record in columns.values()]
            if any(value is not None for value in values):
                lines.append(f"| {measure.name} | {' | '.join(map(measure.show, values))} |")
        lines += ["", f"Measured by {engines or 'no engine'}."]
        if self.scores.get("independent") is False:
            lines.append("Likeness is not independent: the engine that measured it also screened the data.")
        lines.append(f"Pair: `{best['semantic']}` + `{best['wave']}`, chosen by: {best.get('rule', 'best score')}.")
        return "\n".join(lines)

    def summary(self) -> dict[str, float]:
        """What a voice is compared by: `best/…`, `ceiling/…` (its own recordings), `base/…` (untuned), `cost/…`."""
        groups = {
            "best": self.best_pair,
            "ceiling": self.scores.get("ceiling") or {},
            "base": self.scores.get("base") or {},
            "cost": self.cost,
        }
        return {
            f"{group}/{name}": value for group, record in groups.items() for name, value in numbers_of(record).items()
        }


def points_of(record: dict[str, Any]) -> Iterator[Point]:
    """The numbers of one line of `curves.jsonl`."""
    prefix = "held_out/" if record["kind"] == "held_out" else ""
    for metric, value in numbers_of(record["metrics"]).items():
        yield Point(name=f"{prefix}{record['phase']}/{metric}", step=record["step"], value=value)


def numbers_of(record: dict[str, Any]) -> dict[str, float]:
    """The entries of `record` that are numbers; null is a number that could not be had."""
    return {
        name: float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _read_object(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; train and evaluate the voice again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} should hold a JSON object, got {type(record).__name__}")
    return record
