"""What a job may be told: dataclasses, filled from YAML and overrides, checked before any node is asked for.

A YAML file has the fields of `JobConfig`, nested as they are; `--set training.seed=3` overrides one. Addresses and
secrets come from the environment or the command line, never from a file that is stored beside results.
"""

import dataclasses
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from gsv_core.text.language_spans import LANGUAGES
from gsv_core.training.precision import Precision
from gsv_core.training.recipes import choose_recipe
from pipelines.engines.choose import SPEAKER_VERIFIERS
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
    memory_mb: int | None = None
    """What training one voice may take of a worker's memory. Without it: what is free on its GPU; on a CPU no bound."""
    checkpoint_uri: str | None = None
    """Where runs are copied to while they are trained, as `s3://bucket/runs`: they go on from there on any machine."""
    max_hours: float | None = None
    """Of training, by the clock: then voices in hand are saved and no further one is begun."""
    max_gpu_hours: float | None = None
    """Of training, over all GPUs that its workers hold."""

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"cluster.cpus must be at least 1, got {self.cpus}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"cluster.gpus_per_worker must not be negative, got {self.gpus_per_worker}")
        for name in ("max_hours", "max_gpu_hours"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"cluster.{name} must be positive, got {value:g}")
        if self.max_gpu_hours is not None and not self.gpus_per_worker:
            raise ValueError("cluster.max_gpu_hours: no GPU is used (cluster.gpus_per_worker is 0); use max_hours")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How voices are trained. `semantic` and `wave` override fields of the recipe's plans, such as `{steps: 200}`."""

    recipe: str | None = None
    """`upstream` for GPT-SoVITS's own settings; without it the amount of speech decides."""
    seed: int = 0
    precision: Precision = Precision.AUTO
    """What is multiplied in: `auto`, `float32`, `bfloat16` (also for CPUs with AMX) or `float16` (loss scaled)."""
    semantic: dict[str, Any] = field(default_factory=dict)
    wave: dict[str, Any] = field(default_factory=dict)
    attempts: int = 2
    """How often a voice that failed is tried in all."""
    pack: int = 1
    """Voices that one worker trains at once where LoRA trains, the adapters of all in one batch."""
    workers_per_voice: int | None = None
    """Workers that train one voice together. Without it: one, and on GPUs one more for every two hours of speech, up to
    four."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"training.attempts must be at least 1, got {self.attempts}")
        if self.pack < 1:
            raise ValueError(f"training.pack must be at least 1, got {self.pack}")
        if self.workers_per_voice is not None and self.workers_per_voice < 1:
            raise ValueError(f"training.workers_per_voice must be at least 1, got {self.workers_per_voice}")
        if self.seed < 0:
            raise ValueError(f"training.seed must not be negative, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What every saved pair is measured on."""

    utterances: int = 2
    """Held-out Utterances spoken by each pair; where none is held out, that many fixed sentences."""
    sentences: int = 1
    """Fixed sentences of the language spoken by each pair beside them."""
    common: int = 5
    """Fixed sentences that the chosen pair says in all; two versions of a voice are compared on what both have said."""
    prompts: int = 2
    """Prompt candidates that the chosen pair tries; 0 takes the best recording as it is."""
    likeness: str | None = None
    """Engine that measures likeness; without it one that did not screen the clips, where this machine has one."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.utterances < 1:
            raise ValueError(f"evaluation.utterances must be at least 1, got {self.utterances}")
        for name in ("sentences", "common", "prompts"):
            if getattr(self, name) < 0:
                raise ValueError(f"evaluation.{name} must not be negative, got {getattr(self, name)}")
        if self.likeness is not None and self.likeness not in SPEAKER_VERIFIERS:
            known = ", ".join(SPEAKER_VERIFIERS)
            raise ValueError(f"evaluation.likeness is {self.likeness!r}, expected one of {known}")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What a version must meet to become champion: by how much its mean over the sentences that it and the champion
    have both spoken may be worse, as far as one can be `confidence` sure. None: not compared."""

    character_error_rate: float | None = 0.05
    likeness: float | None = 0.03
    """A cosine."""
    quality: float | None = 0.2
    """Of 1 to 5."""
    confidence: float = 0.95
    fewest_sentences: int = 5
    """With fewer in common both versions are spoken and measured anew."""
    timeout_s: float = 600.0
    """For a version to be loaded and to speak in a process of its own."""

    def __post_init__(self) -> None:
        for name in ("character_error_rate", "likeness", "quality"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"registry.gate.{name} must not be negative, got {value}")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"registry.gate.confidence must be between 0.5 and 1, got {self.confidence}")
        if self.fewest_sentences < 2:
            raise ValueError(f"registry.gate.fewest_sentences must be at least 2, got {self.fewest_sentences}")


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """Where versions go. `require_consent` keeps a voice without consent out of the registry."""

    tracking_uri: str | None = None
    prefix: str = "gsv-"
    experiment: str | None = None
    require_consent: bool = False
    sentences_at_saves: int = 1
    """How many of the fixed sentences of its language a voice says at each save of SoVITS, to be heard."""
    promote: str = "manual"
    """`auto`: a new version becomes champion by itself where it passes the gate; `manual`: by `gsv promote` alone."""
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        if self.sentences_at_saves < 0:
            raise ValueError(f"registry.sentences_at_saves must not be negative, got {self.sentences_at_saves}")
        if self.promote not in ("manual", "auto"):
            raise ValueError(f"registry.promote is {self.promote!r}, expected manual or auto")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Everything `gsv onboard` and its parts may be told. Each field has a default that works on a laptop."""

    language: str | None = None
    """Assumed for voices that do not state one."""
    lexicon: str | None = None
    """A `lexicon.tsv` for all voices; one in the recordings' folder or in a voice's counts before it."""
    corrections: str | None = None
    """A `corrections.tsv` for all voices; one in the recordings' folder or in a voice's counts before it."""
    corpus_uri: str | None = None
    """Where the corpus lies, as `s3://bucket/corpus`; else in the workspace, which remembers what was once given."""
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
    return _anchored(build(JobConfig, values, ""))


def _anchored(config: JobConfig) -> JobConfig:
    """`config` with its folders and files by their full paths: workers have a working directory of their own."""
    engines = config.flow.engines
    engines = replace(
        engines,
        recogniser_model=_model_from_here(engines.recogniser_model),
        speaker_verifier_model=_model_from_here(engines.speaker_verifier_model),
        align_models={language: _model_from_here(model) for language, model in engines.align_models.items()},
    )
    flow = replace(
        config.flow,
        base_folder=_from_here(config.flow.base_folder),
        polyphones=_from_here(config.flow.polyphones),
        engines=engines,
    )
    return replace(
        config,
        corpus_uri=_from_here(config.corpus_uri),
        flow=flow,
        registry=replace(config.registry, tracking_uri=_store_from_here(config.registry.tracking_uri)),
        cluster=replace(config.cluster, checkpoint_uri=_from_here(config.cluster.checkpoint_uri)),
    )


def _from_here(place: str | None) -> str | None:
    """A path as a full one; an address, and nothing, as it is."""
    return str(Path(place).expanduser().absolute()) if place and "://" not in place else place


def _store_from_here(uri: str | None) -> str | None:
    """SQLite's addresses have a third slash before a path, and a fourth where it is a full one."""
    scheme, separator, path = (uri or "").partition(":///")
    return f"{scheme}:///{_from_here(path)}" if separator and scheme.split("+")[0] == "sqlite" else uri


def _model_from_here(model: str) -> str:
    """A model's folder as a full path; a name on the hub, of which there is no such folder, as it is."""
    return str(_from_here(model)) if Path(model).expanduser().exists() else model


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
