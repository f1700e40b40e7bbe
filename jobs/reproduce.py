"""Reproduce: what a registered version was made of, which of it is here, and the same training once more.

A version's run says which selection of which corpus, base, recipe and seed trained it, by what code and on what kind of
machine. The same of all gives the same weights, bit for bit, on a CPU with the same kernels; a GPU only comes near, and
so does a voice that shared its batches: trained again it sits in a pack alone, and its sums are rounded otherwise.
"""

import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from gsv_core.checkpoints.base import BaseModel, load_base
from gsv_core.checkpoints.hub import file_digest
from gsv_core.checkpoints.releases import Release
from gsv_core.training.recipes import Recipe
from gsv_core.training.schedules import PhasePlan
from gsv_core.training.updates import TRAINER_VERSION
from jobs.config import JobConfig
from jobs.packed import train_packed
from jobs.run_folder import HALVES
from jobs.telemetry import TelemetryPlan
from jobs.tracking import ENVIRONMENT_NAME, RegisteredVersion, Registry, environment
from jobs.train import Step, VoiceTask, train_voice
from jobs.workspace import Workspace
from pipelines.rows import SelectionRow
from pipelines.stage import digest_of

PACKED_DISTANCE = 0.05
"""How far, by `Again.distances`, the weights of a voice that shared its batches may be from those trained again."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing that a version was made of: what it was, and what there is here."""

    what: str
    wanted: str
    here: str | None
    decides: bool = True
    """Without it the training cannot be run again; else another one may give other bytes."""

    @property
    def met(self) -> bool:
        return self.wanted == self.here


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """All that a version was made of. `record` is its `run.json`, `weights` the digests that must come out again."""

    voice: str
    version: int
    run_id: str
    needs: tuple[Need, ...]
    record: dict[str, Any]
    weights: dict[str, str]
    saves: dict[str, str]
    """Half → name of the save that was chosen."""
    on_gpu: bool

    @property
    def can_run(self) -> bool:
        return all(need.met for need in self.needs if need.decides)

    @property
    def packed(self) -> bool:
        """It shared its batches with other voices."""
        return bool(self.record.get("packed"))


@dataclass(frozen=True, kw_only=True)
class Again:
    """What a second training gave."""

    weights: dict[str, str]
    """Half → digest of its file."""
    distances: dict[str, float]
    """Half → how far its tensors are from the registered ones, by the norm of these; that of the farthest."""

    def confirms(self, found: Provenance) -> bool:
        """Whether it is the registered version again: the same bytes, or near where it shared its batches."""
        near = found.packed and max(self.distances.values()) <= PACKED_DISTANCE
        return near or self.weights == found.weights


def provenance(
    registry: Registry, version: RegisteredVersion, voice: str, workspace: Workspace, config: JobConfig
) -> Provenance:
    """What `version` needs, beside what is in this workspace and on this machine.

    Raises:
        ValueError: its run says nothing of that, as one that was trained elsewhere.
    """
    record = registry.run_file(version, "run.json")
    if record is None or "selection_digest" not in record or "recipe" not in record:
        raise ValueError(f"{version.uri} was not trained by gsv-fleet, or its run is gone: nothing says what of")
    made_in = registry.run_file(version, ENVIRONMENT_NAME) or {}
    cost = registry.run_file(version, "cost.json") or {}
    with registry.files_of(version) as folder:
        weights = {half: file_digest(folder / f"{half}.safetensors") for half in HALVES}
        description = json.loads((folder / "voice.json").read_text(encoding="utf-8"))
    needs = [*_data_needs(record, workspace), *_base_needs(record, config), *_machine_needs(record, made_in)]
    return Provenance(
        voice=voice,
        version=version.version,
        run_id=record["run_id"],
        needs=tuple(needs),
        record=record,
        weights=weights,
        saves={half: description[half] for half in HALVES},
        on_gpu=bool(cost.get("gpu_seconds")),
    )


def train_again(
    found: Provenance,
    registered: Path,
    workspace: Workspace,
    config: JobConfig,
    *,
    on_step: Callable[[Step], None] = lambda _: None,
) -> Again:
    """Train it again, on one thread of this CPU, and compare with the files in `registered`.

    Raises:
        ValueError: something that decides is not here.
    """
    if missing := [need.what for need in found.needs if need.decides and not need.met]:
        raise ValueError(f"{found.voice} version {found.version} cannot be trained again here: {', '.join(missing)}")
    rows = read_selection(workspace, found.voice, found.record["selection_digest"])
    assert rows is not None
    # Where a run that was interrupted left off, it is gone on from.
    run_dir = workspace.root / "reproduced" / found.voice / found.run_id
    task = VoiceTask(
        voice=found.voice,
        run_id=found.run_id,
        run_dir=str(run_dir),
        corpus=workspace.corpus_place,
        rows=rows,
        recipe=recipe_of(found.record["recipe"]),
        record=found.record,
        telemetry=TelemetryPlan(sentences=0),
    )
    base = _base(found.record, config)
    with _one_thread():
        if found.packed:
            waiting = iter([task])
            (outcome,) = train_packed(lambda: next(waiting, None), base, seats=1, on_step=on_step)
            if outcome.error is not None:
                raise outcome.error
        else:
            train_voice(task, base, on_step=on_step)
    files = {half: run_dir / "weights" / f"{name}.safetensors" for half, name in found.saves.items()}
    again = Again(
        weights={half: file_digest(path) for half, path in files.items()},
        distances={half: _distance(path, registered / f"{half}.safetensors") for half, path in files.items()},
    )
    shutil.rmtree(run_dir)
    return again


def _distance(again: Path, registered: Path) -> float:
    """The largest difference of a tensor, by the norm of the registered one; infinite where there are others."""
    found, wanted = load_file(again), load_file(registered)
    if found.keys() != wanted.keys():
        return math.inf
    norms = [(float((found[name] - one).norm()), float(one.norm())) for name, one in wanted.items()]
    return max((difference / max(norm, 1e-30) for difference, norm in norms), default=0.0)


def read_selection(workspace: Workspace, voice: str, digest: str) -> tuple[SelectionRow, ...] | None:
    """The rows that were selected, if they are still here and are the same."""
    path = f"voices/{voice}/selection/{digest}.parquet"
    if not workspace.storage.exists(path):
        return None
    lines = pq.read_table(io.BytesIO(workspace.storage.read(path))).to_pylist()
    rows = tuple(SelectionRow(**line) for line in lines)
    return rows if digest_of([asdict(row) for row in rows])[:32] == digest else None


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.record` wrote.

    Raises:
        ValueError: it has fields that this version of gsv-fleet has not.
    """
    try:
        plans = {half: PhasePlan(**record[half]) for half in HALVES}
        return Recipe(name=record["name"], note=record["note"], **plans)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the recipe is of another gsv-fleet: {error}") from error


def _data_needs(record: Mapping[str, Any], workspace: Workspace) -> Iterator[Need]:
    storage, voice = workspace.storage, str(record["voice"])
    corpus = json.loads(storage.read("corpus.json")) if storage.exists("corpus.json") else {}
    # A corpus grows for other voices without touching this one: the selection and its units are what is trained on.
    yield Need(what="corpus", wanted=record["corpus_digest"], here=corpus.get("corpus_digest"), decides=False)
    digest = record["selection_digest"]
    rows = read_selection(workspace, voice, digest)
    yield Need(what="selection", wanted=digest, here=None if rows is None else digest)
    if rows is not None:
        wanted = {row.unit_id for row in rows if row.keep}
        here = {unit for unit in wanted if storage.exists(f"voices/{voice}/units/{unit}.done")}
        yield Need(what="units of the corpus", wanted=_counted(len(wanted)), here=_counted(len(here)))


def _base_needs(record: Mapping[str, Any], config: JobConfig) -> Iterator[Need]:
    try:
        base: BaseModel | None = _base(record, config)
    except ValueError:
        base = None
    yield Need(what=f"base {record['release']}", wanted=record["base_digest"], here=base.digest if base else None)
    yield Need(what="tokens", wanted=record["token_digest"], here=base.token_digest if base else None)


def _machine_needs(record: Mapping[str, Any], made_in: Mapping[str, Any]) -> Iterator[Need]:
    yield Need(what="trainer", wanted=str(record["trainer_version"]), here=TRAINER_VERSION)
    try:
        same = recipe_of(record["recipe"]).record() == record["recipe"]
    except ValueError:
        same = False
    recipe = f"{record['recipe'].get('name')}, seed {record['seed']}"
    yield Need(what="recipe", wanted=recipe, here=recipe if same else "one with other fields")
    here = environment()
    names = {"code": "code_digest", "lock": "lock_digest", "python": "python", "kernels": "kernels"}
    for what, name in names.items():
        if made_in.get(name) is not None:
            yield Need(what=what, wanted=made_in[name], here=here[name], decides=False)
    for name, version in (made_in.get("packages") or {}).items():
        if name in ("torch", "numpy") or here["packages"].get(name) != version:
            yield Need(what=name, wanted=version, here=here["packages"].get(name), decides=False)


def _base(record: Mapping[str, Any], config: JobConfig) -> BaseModel:
    folder = config.flow.base_folder
    return load_base(Release(record["release"]), Path(folder) if folder else None)


def _counted(units: int) -> str:
    return f"{units} units"


@contextmanager
def _one_thread() -> Iterator[None]:
    """As many threads as a worker of the fleet has: another number may sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
