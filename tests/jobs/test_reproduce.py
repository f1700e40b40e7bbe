"""A version says what it was made of, and the same training again gives the same bytes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gsv_core.checkpoints.base import load_base
from gsv_core.checkpoints.hub import file_digest
from gsv_core.training.schedules import Trains
from jobs.packed import train_packed
from jobs.register import register_voice
from jobs.reproduce import Provenance, provenance, read_selection, recipe_of, train_again
from jobs.tracking import RegisteredVersion, Tracker
from jobs.train import VoiceTask
from jobs.workspace import Workspace
from tests.jobs.conftest import CONFIG, ScoredCorpus, one_thread
from tests.jobs.run_fixture import write_nano_run


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", "corpus")


@pytest.fixture(scope="module")
def workspace(scored: ScoredCorpus, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("again") / "workspace"
    shutil.copytree(scored.workspace.root, root)
    return Workspace.open(root)


@pytest.fixture(scope="module")
def version(scored: ScoredCorpus, tracker: Tracker) -> RegisteredVersion:
    task = scored.tasks[min(scored.tasks)]
    return register_voice(tracker, Path(task.run_dir))


@pytest.fixture
def found(scored: ScoredCorpus, tracker: Tracker, version: RegisteredVersion, workspace: Workspace) -> Provenance:
    return provenance(tracker.registry, version, min(scored.tasks), workspace, CONFIG)


def test_everything_is_here_where_it_was_trained(found: Provenance, tracker: Tracker) -> None:
    assert [need.what for need in found.needs if not need.met] == []
    assert {"selection", "units of the corpus", "base nano", "trainer", "code", "kernels"} <= {
        need.what for need in found.needs
    }
    assert found.can_run
    assert not found.on_gpu
    tags = tracker.registry.tags_of(tracker.registry.version_of(found.voice))
    assert {half: tags[f"weights.{half}"] for half in found.weights} == found.weights
    assert recipe_of(found.record["recipe"]).record() == found.record["recipe"]


def test_the_same_training_gives_the_same_bytes(
    found: Provenance, tracker: Tracker, version: RegisteredVersion, workspace: Workspace
) -> None:
    steps = []
    with tracker.registry.files_of(version) as files:
        again = train_again(found, files, workspace, CONFIG, on_step=steps.append)
    assert again.weights == found.weights
    assert set(again.distances.values()) == {0.0}
    assert again.confirms(found)
    assert steps
    assert not (workspace.root / "reproduced" / found.voice / found.run_id).exists()


def test_another_seed_gives_other_bytes(
    found: Provenance, tracker: Tracker, version: RegisteredVersion, workspace: Workspace
) -> None:
    recipe = {
        name: {**plan, "seed": 7, "steps": 2, "save_every": 2} if isinstance(plan, dict) else plan
        for name, plan in found.record["recipe"].items()
    }
    saves = {half: f"{half}-s000002" for half in found.saves}
    other = replace(found, run_id="other", record={**found.record, "recipe": recipe}, saves=saves)
    with tracker.registry.files_of(version) as files:
        again = train_again(other, files, workspace, CONFIG)
    assert not set(again.weights.values()) & set(found.weights.values())
    assert min(again.distances.values()) > 0
    assert not again.confirms(found)


def test_a_voice_that_shared_its_batches_comes_near(
    found: Provenance, tracker: Tracker, workspace: Workspace, scored: ScoredCorpus, tmp_path: Path
) -> None:
    """Registered from a pack of two; trained again it sits alone."""
    ours, other = (scored.tasks[voice] for voice in sorted(scored.tasks))
    base = load_base("nano")

    def packed(task: VoiceTask) -> VoiceTask:
        semantic = replace(task.recipe.semantic, trains=Trains.LOW_RANK, rank=4, learning_rate=1e-3)
        wave = replace(task.recipe.wave, steps=0, trains=Trains.NOTHING)
        recipe = replace(task.recipe, semantic=semantic, wave=wave)
        record = {**task.record, "packed": True, "recipe": recipe.record(), "run_id": "packed"}
        run_dir = str(tmp_path / task.voice)
        return replace(task, recipe=recipe, record=record, run_id="packed", run_dir=run_dir)

    waiting = iter([packed(ours), packed(other)])
    with one_thread():
        assert all(outcome.finished for outcome in train_packed(lambda: next(waiting, None), base, seats=2))
    weights = {half: sorted((tmp_path / ours.voice / "weights").glob(f"{half}-*"))[-1] for half in found.weights}
    registered = tmp_path / "registered"
    registered.mkdir()
    for half, path in weights.items():
        shutil.copy(path, registered / f"{half}.safetensors")
    shared = replace(
        found,
        run_id="packed",
        record=packed(ours).record,
        weights={half: file_digest(path) for half, path in weights.items()},
        saves={half: path.stem for half, path in weights.items()},
    )
    again = train_again(shared, registered, workspace, CONFIG)
    assert again.confirms(shared)
    assert again.distances["wave"] == 0
    assert 0 < again.distances["semantic"] < 0.01
    nearly = replace(again, weights={**again.weights, "semantic": "other"})
    assert not nearly.confirms(replace(shared, record=found.record))


def test_what_is_missing_is_named_and_nothing_is_trained(
    found: Provenance, tracker: Tracker, version: RegisteredVersion, tmp_path: Path
) -> None:
    empty = Workspace.open(tmp_path / "empty")
    there = provenance(tracker.registry, version, found.voice, empty, CONFIG)
    assert [need.what for need in there.needs if not need.met] == ["corpus", "selection"]
    assert not there.can_run
    with pytest.raises(ValueError, match=r"cannot be trained again here: selection"):
        train_again(there, tmp_path, empty, CONFIG)


def test_a_selection_that_was_changed_is_not_taken(found: Provenance, workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace.open(tmp_path / "other")
    digest = found.record["selection_digest"]
    path = f"voices/{found.voice}/selection"
    data = workspace.storage.read(f"{path}/{digest}.parquet")
    other.storage.write(f"{path}/{digest}.parquet", data)
    other.storage.write(f"{path}/{'0' * 32}.parquet", data)
    assert read_selection(other, found.voice, digest) is not None
    assert read_selection(other, found.voice, "0" * 32) is None
    assert read_selection(other, found.voice, "1" * 32) is None


def test_a_voice_that_was_trained_elsewhere_says_so(tracker: Tracker, tmp_path: Path) -> None:
    run_dir = write_nano_run(tmp_path / "corpus", voice="zoe", run_id="z" * 20)
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    del record["selection_digest"]
    (run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")
    version = register_voice(tracker, run_dir)
    with pytest.raises(ValueError, match="was not trained by gsv-fleet"):
        provenance(tracker.registry, version, "zoe", Workspace.open(tmp_path / "work"), CONFIG)


def test_a_recipe_of_another_time_is_named() -> None:
    with pytest.raises(ValueError, match="of another gsv-fleet"):
        recipe_of({"name": "x", "note": "", "semantic": {"stepps": 1}, "wave": {}})
