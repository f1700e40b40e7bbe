"""What a job may be told: dataclasses, filled from YAML and overrides, checked before any node is asked for.

A YAML file has the fields of `JobConfig`, nested as they are; `--set training.seed=3` overrides one. Addresses and
secrets come from the environment or the command line, never from a file that is stored beside results.
"""

import dataclasses
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from gsv_core.text.language_spans import LANGUAGES
from gsv_core.training.recipes import choose_recipe
from pipelines.flow import FlowConfig
from pipelines.selection import SelectionPolicy

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """The safe loader, to which `1e-4` is a number as in YAML 1.2; YAML 1.1 wants `1.0e-4` and reads text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+e[-+]?[0-9]+\Z", re.I), list("-+0123456789")
)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the work runs. Without an address a Ray of its own is started and stopped again."""

    ray_address: str | None = None
    cpus: int | None = None
    """CPUs to use; all of the machine or cluster where not given."""
    gpus_per_worker: float = 0.0
    object_store_mb: int | None = None

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"cluster.cpus must be at least 1, got {self.cpus}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"cluster.gpus_per_worker must not be negative, got {self.gpus_per_worker}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How voices are trained. `semantic` and `wave` override fields of the recipe's plans, such as `{steps: 200}`."""

    recipe: str | None = None
    """`upstream` for GPT-SoVITS's own settings; without it the amount of speech decides."""
    seed: int = 0
    semantic: dict[str, Any] = field(default_factory=dict)
    wave: dict[str, Any] = field(default_factory=dict)
    attempts: int = 2
    """How often a voice that failed is tried in all."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"training.attempts must be at least 1, got {self.attempts}")
        if self.seed < 0:
            raise ValueError(f"training.seed must not be negative, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What every saved pair is measured on."""

    utterances: int = 2
    """Held-out Utterances spoken by each pair; where none is held out, that many fixed sentences."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.utterances < 1:
            raise ValueError(f"evaluation.utterances must be at least 1, got {self.utterances}")


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """Where versions go. `require_consent` keeps a voice without consent out of the registry."""

    tracking_uri: str | None = None
    prefix: str = "gsv-"
    experiment: str | None = None
    require_consent: bool = False


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Everything `gsv onboard` and its parts may be told. Each field has a default that works on a laptop."""

    language: str | None = None
    """Assumed for voices that do not state one."""
    lexicon: str | None = None
    """A `lexicon.tsv` for all voices; one in the recordings' folder or in a voice's counts before it."""
    corrections: str | None = None
    """A `corrections.tsv` for all voices; one in the recordings' folder or in a voice's counts before it."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    selection: SelectionPolicy = field(default_factory=SelectionPolicy)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    most_rejected_share: float = 0.5
    """More rejected speech than this share of all speech ends the job with exit code 3."""

    def __post_init__(self) -> None:
        if not 0 <= self.most_rejected_share <= 1:
            raise ValueError(f"most_rejected_share must be between 0 and 1, got {self.most_rejected_share}")
        if self.language is not None and self.language not in LANGUAGES:
            raise ValueError(f"language is {self.language!r}, expected one of {', '.join(LANGUAGES)}")
        # A wrong override is found now, not after hours of preparing.
        training = self.training
        choose_recipe(60.0, self.flow.release, name=training.recipe, semantic=training.semantic, wave=training.wave)


def load_config(path: Path | None, overrides: list[str], named: Mapping[str, Any] | None = None) -> JobConfig:
    """The YAML at `path` (if any) under the `overrides`, each `dotted.name=value`, under the `named` values.

    Raises:
        ValueError: unreadable, an unknown field (the known ones are named), or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        except OSError as error:
            raise ValueError(f"--config {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"--config {path}: not readable as YAML ({str(error).splitlines()[0]})") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ValueError(f"--config {path}: expected `field: value` lines")
        values = loaded or {}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"--set {override}: expected NAME=VALUE, such as training.seed=3")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {override}: the value is not readable as YAML") from error
        _put(values, name, value, f"--set {override}")
    for name, value in (named or {}).items():
        _put(values, name, value, name)
    return build(JobConfig, values, "")


def _put(values: dict[str, Any], name: str, value: Any, said: str) -> None:
    place = values
    *folders, last = name.split(".")
    for folder in folders:
        place = place.setdefault(folder, {})
        if not isinstance(place, dict):
            raise ValueError(f"{said}: {folder} is no group of settings")
    place[last] = value


def build(kind: type[T], values: dict[str, Any], path: str) -> T:
    """`values` as a dataclass of `kind`, nested dataclasses too; unknown names and wrong kinds are errors."""
    hints = get_type_hints(kind)
    known = {entry.name for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(map(str, set(values) - known)):
        raise ValueError(f"config: {path}{unknown[0]} is not known; there are {', '.join(sorted(known))}")
    return kind(**{name: _value(hints[name], value, f"{path}{name}") for name, value in values.items()})


def _value(kind: Any, value: Any, path: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        kind = next(argument for argument in get_args(kind) if argument is not type(None))
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"config: {path} is a group of settings, got {value!r}")
        return build(kind, value, f"{path}.")  # type: ignore[arg-type]
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise ValueError(
                f"config: {path} is {value!r}, expected one of {', '.join(str(entry.value) for entry in kind)}"
            ) from None
    plain = get_origin(kind) or kind
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(plain, type) and (not isinstance(value, plain) or (plain is int and isinstance(value, bool))):
        raise ValueError(f"config: {path} is {value!r}, expected {plain.__name__}")
    return value


def available_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0))
