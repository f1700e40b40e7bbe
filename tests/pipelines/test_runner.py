"""Units through the real Ray: results, errors, a killed actor and a killed driver."""

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.exceptions

from gsv_core.checkpoints.base import load_base
from jobs.cluster import Cluster
from jobs.config import JobConfig
from jobs.prepare import flow_of
from pipelines.board import Board
from pipelines.flow import Flow
from pipelines.rows import Recording, Rejection, Source
from pipelines.runner import (
    NODE_IS_GONE,
    Patience,
    UnitResult,
    _packed,
    _StageActor,
    first_cause,
    pool_sizes,
    run_units,
    stage_groups,
)
from pipelines.sources import gather
from pipelines.stage import Resources, Stage
from pipelines.stages.features import ExtractFeatures, FeatureModels
from pipelines.stages.ingest import IngestSources
from pipelines.stages.transcribe import TranscribeClips
from pipelines.storage import LocalStorage, StorageError
from pipelines.units import Unit, done_path, plan, read_committed


@dataclass(frozen=True)
class Made:
    """The units of two voices, and the files that an undisturbed run with two actors made of them."""

    flow: Flow
    units: tuple[Unit, ...]
    results: tuple[UnitResult, ...]
    progress: tuple[dict[str, int], ...]
    corpus: Path
    files: dict[str, str]


def digests(corpus: Path) -> dict[str, str]:
    """Path → SHA-256 of every file under voices/."""
    return {
        str(path.relative_to(corpus)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((corpus / "voices").rglob("*"))
        if path.is_file()
    }


def small_recordings(demo_voices: Path, folder: Path) -> Path:
    """Two short recordings of one voice, one of another: enough to see order and voices kept apart."""
    for voice, name in (("ada", "day_1.wav"), ("ben", "day_2.flac"), ("ben", "day_3.wav")):
        (folder / voice).mkdir(parents=True, exist_ok=True)
        for path in (demo_voices / "ada" / name, (demo_voices / "ada" / name).with_suffix(".txt")):
            (folder / voice / path.name).write_bytes(path.read_bytes())
        (folder / voice / "voice.yaml").write_text("language: en\n", encoding="utf-8")
    return folder


def real_flow() -> Flow:
    config = JobConfig()
    return flow_of(config, load_base(config.flow.release))


def planned(recordings: Path, flow: Flow, corpus: Path) -> tuple[Unit, ...]:
    storage = LocalStorage(corpus)
    return plan(gather(recordings, storage).sources, flow.digest, storage).to_do


@pytest.fixture(scope="module")
def cluster(cluster: Cluster) -> Cluster:
    cluster.start()
    return cluster


@pytest.fixture(scope="module")
def recordings(demo_voices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recordings(demo_voices, tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def made(cluster: Cluster, recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    corpus = tmp_path_factory.mktemp("undisturbed")
    flow = real_flow()
    units = planned(recordings, flow, corpus)
    progress: list[dict[str, int]] = []
    results = tuple(run_units(units, flow, str(corpus), actors=2, on_progress=progress.append))
    return Made(flow, units, results, tuple(progress), corpus, digests(corpus))


def stage_actors() -> set[int]:
    """Process ids of the actors that run stages, in the Ray that this process started."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return {pid for pid in mine if titles.get(pid, "").startswith("ray::") and "MapWorker" in titles[pid]}


def test_units_of_two_voices_are_committed_and_told_of(made: Made) -> None:
    assert {result.voice for result in made.results} == {"ada", "ben"}
    assert {result.unit_id for result in made.results} == {unit.unit_id for unit in made.units}
    storage = LocalStorage(made.corpus)
    for unit in made.units:
        (result,) = (entry for entry in made.results if entry.unit_id == unit.unit_id)
        committed = read_committed(unit, storage)
        assert result.error is None, result.trace
        assert result.kept == committed.kept > 0
        assert result.rejected == committed.rejected
        assert result.seconds > 0
        assert {account.digest for account in committed.accounts} == {source.digest for source in unit.sources}
        for path, digest in committed.files.items():
            assert made.files[path] == digest
    assert made.progress
    assert made.progress[-1].get("ingest", 0) > 0


def test_a_unit_that_fails_is_its_own_error_and_the_others_are_committed(made: Made, tmp_path: Path) -> None:
    good = next(unit for unit in made.units if unit.voice == "ada")
    other = next(unit for unit in made.units if unit.voice == "ben")
    # A place that is no text cannot come from `gather`: whatever raises on it is a bug, not a Rejection.
    broken = replace(other, sources=tuple(replace(entry, language="en", uri=17) for entry in other.sources))  # type: ignore[arg-type]
    results = {row.unit_id: row for row in run_units([broken, good], made.flow, str(tmp_path), actors=1)}
    storage = LocalStorage(tmp_path)
    assert results[good.unit_id].error is None
    assert storage.exists(done_path(good))
    assert results[broken.unit_id].error
    assert "Traceback" in (results[broken.unit_id].trace or "")
    assert results[broken.unit_id].kept == 0
    assert not storage.exists(done_path(broken))
    assert {path: digest for path, digest in made.files.items() if path.startswith("voices/ada")} == digests(tmp_path)


def test_a_killed_actor_costs_nothing_but_time(made: Made, tmp_path: Path) -> None:
    earlier, storage = stage_actors(), LocalStorage(tmp_path)
    killed: list[int] = []
    unfinished: list[Unit] = []

    def kill_one(rows: dict[str, int]) -> None:
        # Rows are through the first stage, so the one actor is in the middle of a unit.
        if not killed and rows.get("ingest", 0):
            killed.extend(stage_actors() - earlier)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            unfinished.extend(unit for unit in made.units if not storage.exists(done_path(unit)))

    results = list(run_units(made.units, made.flow, str(tmp_path), actors=1, on_progress=kill_one))
    assert len(killed) == 1
    assert unfinished
    assert [result.error for result in results] == [None] * len(made.units)
    assert digests(tmp_path) == made.files


_DRIVER = """
import sys
from pathlib import Path
from jobs.cluster import Cluster
from jobs.config import ClusterConfig
from tests.pipelines.test_runner import planned, real_flow
from pipelines.runner import run_units

recordings, corpus, scratch = map(Path, sys.argv[1:])
flow = real_flow()
with Cluster(ClusterConfig(cpus=2), scratch) as cluster:
    cluster.start()
    list(run_units(planned(recordings, flow, corpus), flow, str(corpus), actors=1))
"""


@pytest.mark.slow
def test_a_killed_driver_loses_no_committed_unit(made: Made, recordings: Path, tmp_path: Path) -> None:
    corpus, root = tmp_path / "corpus", Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _DRIVER, str(recordings), str(corpus), str(tmp_path / "scratch")]
    driver = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 120
    while not list(corpus.glob("voices/*/units/*.done")):
        assert driver.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.05)
    driver.kill()  # one unit is made, the other under way
    driver.wait()
    todo = planned(recordings, made.flow, corpus)
    assert len(todo) == 1
    assert all(result.error is None for result in run_units(todo, made.flow, str(corpus), actors=2))
    assert digests(corpus) == made.files


_GPU_DRIVER = """
import sys
from dataclasses import replace
from pathlib import Path
import ray
from jobs.config import JobConfig
from jobs.prepare import flow_of
from gsv_core.checkpoints.base import load_base
from pipelines.runner import run_units, stage_groups
from tests.pipelines.test_runner import planned

recordings, corpus = map(Path, sys.argv[1:])
config = JobConfig()
config = replace(config, flow=replace(config.flow, gpus=0.25))
flow = flow_of(config, load_base(config.flow.release))
assert len(stage_groups(flow.stages)) == 4
# Ray takes our word that there is a GPU; the engines stay on the CPU.
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
results = list(run_units(planned(recordings, flow, corpus), flow, str(corpus), actors=2))
assert all(result.error is None for result in results), results
"""


def test_model_stages_in_pools_of_their_own_make_the_same_bytes(made: Made, recordings: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _GPU_DRIVER, str(recordings), str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(tmp_path) == made.files


def test_no_units_start_nothing(tmp_path: Path, made: Made) -> None:
    assert list(run_units([], made.flow, str(tmp_path), actors=1)) == []


def test_stages_with_equal_resources_share_actors() -> None:
    stages = real_flow().stages
    assert [len(group) for _, group in stage_groups(stages)] == [7]
    gpu = Resources(cpus=1.0, gpus=0.5)
    mixed = [replace(stage, resources=gpu) if isinstance(stage, TranscribeClips) else stage for stage in stages]
    assert [(resources.gpus, len(group)) for resources, group in stage_groups(mixed)] == [(0.0, 3), (0.5, 1), (0.0, 3)]


def test_pools_with_gpus_are_no_larger_than_the_gpus_hold() -> None:
    groups = [Resources(), Resources(gpus=0.25), Resources(), Resources(gpus=0.25), Resources()]
    assert pool_sizes(groups, 8, {"CPU": 16, "GPU": 2}) == [8, 4, 8, 4, 8]
    assert pool_sizes(groups, 2, {"CPU": 16, "GPU": 2}) == [2] * 5
    assert pool_sizes([Resources()], 8, {"CPU": 8}) == [8]
    with pytest.raises(ValueError, match=r"flow\.gpus: .* want 0\.5 GPUs, the cluster has 0"):
        pool_sizes(groups, 8, {"CPU": 16})


@dataclass(frozen=True, kw_only=True)
class KillsItsWorker(IngestSources):
    """Ingest, but a file of a certain size takes the process down, as a crash in a decoder's C code would."""

    deadly_bytes: int = 0

    def process(self, row: Source, model: Any) -> Iterator[Recording | Rejection]:
        if row.size_bytes == self.deadly_bytes:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().process(row, model)


def test_a_recording_that_kills_its_worker_is_rejected_and_its_unit_committed(made: Made, tmp_path: Path) -> None:
    unit = next(unit for unit in made.units if unit.voice == "ben")
    deadly = min(unit.sources, key=lambda source: source.size_bytes)
    first, *rest = made.flow.stages
    assert isinstance(first, IngestSources)
    stage = KillsItsWorker(limits=first.limits, deadly_bytes=deadly.size_bytes)
    flow = replace(made.flow, stages=(stage, *rest))
    (result,) = run_units([unit], flow, str(tmp_path), actors=1)
    assert result.error is None
    storage = LocalStorage(tmp_path)
    table = pq.read_table(io.BytesIO(storage.read(f"voices/ben/rejected/{unit.unit_id}.parquet"))).to_pylist()
    (rejected,) = (row for row in table if row["reason"] == "kills_worker")
    assert rejected["uri"] == deadly.uri
    accounts = {account.digest for account in read_committed(unit, storage).accounts}
    assert accounts == {source.digest for source in unit.sources} - {deadly.digest}
    assert result.kept > 0


@dataclass(frozen=True, kw_only=True)
class HangsInC(KillsItsWorker):
    """Ingest, but on a file of a certain size it never comes back, nor lets any other thread of Python run."""

    def process(self, row: Source, model: Any) -> Iterator[Recording | Rejection]:
        if row.size_bytes == self.deadly_bytes:
            re.match(r"(a+)+$", "a" * 64 + "b")
        yield from IngestSources.process(self, row, model)


@dataclass(frozen=True, kw_only=True)
class RefusesAll(Stage[Recording, Recording]):
    name = "refuse"

    def process(self, row: Recording, model: None) -> Iterator[Recording | Rejection]:
        yield Rejection(
            row_id=row.recording_id, voice=row.voice, uri=row.uri, stage=self.name, reason="refused", detail="a test"
        )


@pytest.mark.slow
def test_a_recording_that_hangs_is_rejected_and_its_unit_committed(
    cluster: Cluster, recordings: Path, tmp_path: Path
) -> None:
    flow = real_flow()
    unit = next(unit for unit in planned(recordings, flow, tmp_path) if unit.voice == "ben")
    endless, sound = sorted(unit.sources, key=lambda source: source.size_bytes)
    flow = replace(flow, stages=(HangsInC(deadly_bytes=endless.size_bytes), RefusesAll()))
    patience = Patience(least_s=3.0, per_second=0.0)
    (result,) = run_units([unit], flow, str(tmp_path), actors=1, patience=patience)
    assert result.error is None
    table = LocalStorage(tmp_path).read(f"voices/ben/rejected/{unit.unit_id}.parquet")
    reasons = {row["uri"]: row["reason"] for row in pq.read_table(io.BytesIO(table)).to_pylist()}
    assert reasons == {endless.uri: "kills_worker", sound.uri: "refused"}


def test_a_dead_node_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(RuntimeError) as raised, first_cause():
        raise ray.exceptions.LocalRayletDiedError
    assert str(raised.value) == NODE_IS_GONE
    assert "\n" not in NODE_IS_GONE
    assert "run the same command again" in NODE_IS_GONE


def test_patience_must_be_some() -> None:
    with pytest.raises(ValueError, match="least_s > 0"):
        Patience(least_s=0.0)


class _Here:
    """A board in this process, called as a remote one is."""

    def __init__(self) -> None:
        board = Board()
        for name in ("begin", "at", "end", "add"):
            call = getattr(board, name)
            setattr(self, name, type("_Method", (), {"remote": staticmethod(call)}))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.get` of what `_Here` returns: the thing itself."""
    monkeypatch.setattr("pipelines.runner.ray.get", lambda answer: answer)


def made_here(flow: Flow, unit: Unit, corpus: Path) -> dict[str, Any]:
    """What an actor with all stages says of a unit, without any Ray."""
    actor = _StageActor(flow, flow.stages, str(corpus), _Here(), Patience(), True)
    answer = actor({"unit": np.array([_packed(unit)], dtype=object)})
    return {name: values[0] for name, values in answer.items()}


@pytest.fixture
def refused(recordings: Path, tmp_path: Path) -> tuple[Flow, Unit]:
    """A unit, and a flow of two stages that is quickly done with it."""
    flow = real_flow()
    unit = next(unit for unit in planned(recordings, flow, tmp_path / "planned") if unit.voice == "ben")
    return replace(flow, stages=(IngestSources(), RefusesAll())), unit


@pytest.mark.usefixtures("no_ray")
def test_a_unit_made_since_it_was_planned_is_not_made_again(refused: tuple[Flow, Unit], tmp_path: Path) -> None:
    flow, unit = refused
    first = made_here(flow, unit, tmp_path)
    assert (first["kept"], first["rejected"], first["error"]) == (0, 2, "")
    before = digests(tmp_path)
    broken = replace(flow, stages=(HangsInC(deadly_bytes=unit.sources[0].size_bytes), RefusesAll()))
    again = made_here(broken, unit, tmp_path)
    assert again | {"seconds": 0} == first | {"seconds": 0}
    assert digests(tmp_path) == before


@pytest.mark.usefixtures("no_ray")
def test_a_full_disk_is_told_apart_from_a_unit_that_fails(
    refused: tuple[Flow, Unit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, unit = refused
    synced = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.storage.os.fsync", full)
    answer = made_here(flow, unit, tmp_path)
    assert "No space left on device" in answer["no_storage"]
    assert len(answer["no_storage"].splitlines()) == 1
    assert not [path for path in (tmp_path / "voices").rglob("*") if path.is_file()]
    monkeypatch.setattr("pipelines.storage.os.fsync", synced)
    assert made_here(flow, unit, tmp_path)["no_storage"] == ""


class _NotANumber:
    name = "not-a-number"

    def embed(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        return np.full(192, np.nan, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class FeaturesOfABrokenModel(ExtractFeatures):
    def load(self) -> FeatureModels:
        return replace(super().load(), speaker_verifier=_NotANumber())


@pytest.mark.usefixtures("no_ray")
def test_a_model_that_answers_nan_never_reaches_a_shard(recordings: Path, tmp_path: Path) -> None:
    flow = real_flow()
    unit = next(unit for unit in planned(recordings, flow, tmp_path) if unit.voice == "ada")
    stages = [
        FeaturesOfABrokenModel(release=stage.release, base_digest=stage.base_digest, engines=stage.engines)
        if isinstance(stage, ExtractFeatures)
        else stage
        for stage in flow.stages
    ]
    answer = made_here(replace(flow, stages=tuple(stages)), unit, tmp_path)
    assert answer["error"] == ""
    assert answer["kept"] == 0
    table = LocalStorage(tmp_path).read(f"voices/ada/rejected/{unit.unit_id}.parquet")
    rows = pq.read_table(io.BytesIO(table)).to_pylist()
    assert {row["reason"] for row in rows} == {"not_finite"}
    (account,) = read_committed(unit, LocalStorage(tmp_path)).accounts
    assert account.rejected_samples == sum(row["num_samples"] for row in rows)
    assert not list(tmp_path.glob("voices/ada/shards/*"))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line(cluster: Cluster, refused: tuple[Flow, Unit], tmp_path: Path) -> None:
    flow, unit = refused
    blocked = tmp_path / "corpus" / "voices"
    blocked.parent.mkdir()
    blocked.write_bytes(b"a file where a folder should be: not even root can write below it")
    with pytest.raises(StorageError, match="cannot be written") as raised:
        list(run_units([unit], flow, str(tmp_path / "corpus"), actors=1))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
def test_two_runs_over_one_corpus_without_a_lease_make_the_same_bytes(
    made: Made, recordings: Path, tmp_path: Path
) -> None:
    corpus, root = tmp_path / "corpus", Path(__file__).resolve().parents[2]
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", _DRIVER, str(recordings), str(corpus), str(tmp_path / f"scratch-{number}")],
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(2)
    ]
    assert [driver.wait(timeout=300) for driver in drivers] == [0, 0]
    assert digests(corpus) == made.files
