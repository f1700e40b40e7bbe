"""The real worker group: voices that fail, workers that are killed or asked to end.

The drills at the end strike `gsv train` itself, and nodes: the same command again, if need be, and weights and curves
are bit for bit those of a training that nothing disturbed.
"""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster as Nodes
from safetensors.torch import load_file

from gsv_core.synthesis.synthesiser import Synthesiser
from jobs.cluster import Cluster
from jobs.fleet import train_fleet
from jobs.onboard import choose
from jobs.prepare import open_prepared
from jobs.progress import Silent
from jobs.train import VoiceTask, is_trained, saved_weights, train_voice
from jobs.worker_group import Budget, FleetSettings
from jobs.workspace import Workspace
from tests.jobs.conftest import CONFIG, MadeCorpus, one_thread
from tests.jobs.processes import parent_of, processes_titled
from tests.jobs.train_drills import SEMANTIC, WAVE, Training, Undisturbed, digests, moment

SEEDS = range(3)
Weights = Callable[[VoiceTask], dict[str, str]]
SETTINGS = FleetSettings(release=CONFIG.flow.release, base_folder=None, attempts=2)


class Disturbing:
    """A Progress that does something to the workers once, as soon as so many steps are done, and looks on after it."""

    def __init__(
        self, after_steps: int, disturb: Callable[[], None], look_on: Callable[[], None] = lambda: None
    ) -> None:
        self._after_steps, self._disturb, self._look_on = after_steps, disturb, look_on
        self.disturbed_at: float | None = None

    def say(self, line: str) -> None:
        del line

    @contextmanager
    def bar(self, what: str) -> Iterator["Disturbing"]:
        assert what == "train"
        yield self

    def update(self, done: float, total: float, note: str = "", numbers: Mapping[str, float] | None = None) -> None:
        del note, numbers
        if self.disturbed_at is not None:
            self._look_on()
        elif self._after_steps <= done < total:
            self.disturbed_at = done
            self._disturb()


def signal_a_worker(number: signal.Signals) -> None:
    """Send it to the busiest of the processes that train."""
    os.kill(processes_titled("RayTrainWorker")[0], number)


def longer(task: VoiceTask, *, save_every: int) -> VoiceTask:
    """The same task with steps enough to be caught in the middle of them."""
    recipe = replace(task.recipe, semantic=replace(task.recipe.semantic, steps=150, save_every=save_every))
    return replace(task, recipe=recipe)


def damaged(made: MadeCorpus, folder: Path) -> VoiceTask:
    """Ada's corpus under another name, with a shard that ends in the middle."""
    voices = folder / "voices"
    shutil.copytree(made.workspace.voice("ada"), voices / "broken")
    for shard in (voices / "broken" / "shards").iterdir():
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    return replace(made.task("ada", folder / "run"), voice="broken", corpus=str(folder))


def test_nothing_to_train_starts_nothing(tmp_path: Path) -> None:
    unused = Cluster(CONFIG.cluster, tmp_path)
    assert train_fleet([], SETTINGS, unused, tmp_path, Silent()) == {}
    assert not unused.started


def test_a_voice_that_fails_is_reported_and_a_killed_worker_changes_nothing(
    made: MadeCorpus, trained: dict[str, VoiceTask], cluster: Cluster, tmp_path: Path, weights_of: Weights
) -> None:
    """One group for three voices; the busier worker dies behind the first save of the longest."""
    alone = longer(made.task("ada", tmp_path / "alone"), save_every=25)
    with one_thread():
        assert train_voice(alone, made.base)
    ada = replace(alone, run_dir=str(tmp_path / "ada"))
    linus, broken = made.task("linus", tmp_path / "linus"), damaged(made, tmp_path / "damaged")
    progress = Disturbing(60, lambda: signal_a_worker(signal.SIGKILL))
    errors = train_fleet([linus, broken, ada], SETTINGS, cluster, tmp_path, progress)
    assert progress.disturbed_at is not None
    assert progress.disturbed_at < ada.steps
    assert set(errors) == {"broken"}
    assert "damaged" in errors["broken"]
    assert not is_trained(broken)
    assert is_trained(ada)
    assert is_trained(linus)
    assert weights_of(ada) == weights_of(alone)
    assert weights_of(linus) == weights_of(trained["linus"])


def test_a_worker_that_is_asked_to_end_saves_the_step_it_has_reached(
    made: MadeCorpus, cluster: Cluster, tmp_path: Path, weights_of: Weights
) -> None:
    """No save is due before the last step: what is gone on from is what SIGTERM left."""
    alone = longer(made.task("ada", tmp_path / "alone"), save_every=1000)
    with one_thread():
        assert train_voice(alone, made.base)
    task = replace(alone, run_dir=str(tmp_path / "asked"))
    saved = set()

    def look_on() -> None:
        saved.update(path.name for path in (tmp_path / "asked" / "checkpoints" / "semantic").glob("step-*.pt"))

    progress = Disturbing(20, lambda: signal_a_worker(signal.SIGTERM), look_on)
    assert train_fleet([task], SETTINGS, cluster, tmp_path, progress) == {}
    assert progress.disturbed_at is not None
    early = {name for name in saved if name < f"step-{task.recipe.semantic.steps:06d}"}
    assert len(early) == 1
    assert min(early) >= f"step-{int(progress.disturbed_at):06d}"
    assert weights_of(task) == weights_of(alone)


@pytest.mark.slow
def test_a_budget_that_is_spent_on_the_way_saves_and_says_what_is_left(
    made: MadeCorpus, cluster: Cluster, tmp_path: Path, weights_of: Weights
) -> None:
    """The clock is set forward by two hours when 20 steps are made; without a bound the voice goes on there."""
    alone = longer(made.task("ada", tmp_path / "alone"), save_every=1000)
    with one_thread():
        assert train_voice(alone, made.base)
    task = replace(alone, run_dir=str(tmp_path / "bounded"))
    progress = Disturbing(20, lambda: None)

    class Hour(Budget):
        def spent(self, seconds: float, gpus: float) -> str | None:
            return super().spent(seconds + (7200 if progress.disturbed_at is not None else 0), gpus)

    settings = replace(SETTINGS, budget=Hour(hours=1))
    errors = train_fleet([task], settings, cluster, tmp_path, progress)
    assert errors.keys() == {"ada"}
    left = re.fullmatch(
        r"not trained: the budget of 1 hours is spent; saved at step (\d+) of (\d+), the same command goes on there",
        errors["ada"],
    )
    assert left is not None, errors["ada"]
    assert 20 <= int(left[1]) < int(left[2]) == task.steps
    assert not is_trained(task)
    assert train_fleet([task], SETTINGS, cluster, tmp_path, Silent()) == {}
    assert weights_of(task) == weights_of(alone)


@pytest.mark.slow
def test_two_workers_train_one_voice_to_the_curve_of_one(
    made: MadeCorpus, trained: dict[str, VoiceTask], cluster: Cluster, tmp_path: Path
) -> None:
    config = replace(CONFIG, training=replace(CONFIG.training, workers_per_voice=2))
    task = replace(choose(made.prepared, made.workspace, config)[1]["ada"], run_dir=str(tmp_path / "ada"))
    assert task.workers == 2
    assert task.run_id != trained["ada"].run_id  # other sums, other bits
    assert train_fleet([task], SETTINGS, cluster, tmp_path, Silent()) == {}
    assert is_trained(task)
    ours, theirs = (
        [json.loads(line) for line in (Path(folder) / "curves.jsonl").read_text().splitlines()]
        for folder in (task.run_dir, trained["ada"].run_dir)
    )
    assert [(record["kind"], record["step"]) for record in ours] == [
        (record["kind"], record["step"]) for record in theirs
    ]
    for one, other in zip(ours, theirs):
        expected = {name: value for name, value in other["metrics"].items() if "accuracy" not in name}
        assert {name: one["metrics"][name] for name in expected} == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def undisturbed(made: MadeCorpus, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    config = replace(CONFIG, training=replace(CONFIG.training, semantic=SEMANTIC, wave=WAVE))
    _, tasks = choose(made.prepared, made.workspace, config)
    folder = tmp_path_factory.mktemp("undisturbed")
    files = {}
    with one_thread():
        for voice, task in tasks.items():
            assert train_voice(replace(task, run_dir=str(folder / voice)), made.base)
            files[voice] = digests(folder / voice)
    runs = {voice: str(Path(task.run_dir).relative_to(made.workspace.root)) for voice, task in tasks.items()}
    return Undisturbed(
        workspace=made.workspace, runs=runs, files=files, steps=sum(task.steps for task in tasks.values())
    )


@pytest.mark.slow
def test_voices_that_share_a_batch_through_the_program(made: MadeCorpus, tmp_path: Path) -> None:
    """Three voices, two at a time in one worker: near to what each becomes alone, and all that a run leaves."""
    corpus = Workspace.open(tmp_path / "w")
    shutil.copytree(made.workspace.root, corpus.root, ignore=shutil.ignore_patterns("runs"), dirs_exist_ok=True)
    # The third voice is the first one's speech under another name, which draws otherwise.
    shutil.copytree(corpus.voice("ada"), corpus.voice("eve"))
    for path, more in ((corpus.voice("eve") / "voice.json", {"voice": "eve"}), (corpus.corpus / "corpus.json", {})):
        described = json.loads(path.read_text()) | more
        if "voices" in described:
            described["voices"] = ["ada", "eve", "linus"]
        path.write_text(json.dumps(described))
    low_rank = {**SEMANTIC, "steps": 30, "save_every": 15, "trains": "low_rank", "rank": 4}
    config = replace(CONFIG, training=replace(CONFIG.training, semantic=low_rank, wave=WAVE, pack=2))
    prepared = open_prepared(corpus, config)
    _, tasks = choose(prepared, corpus, config)
    assert tasks.keys() == {"ada", "eve", "linus"}

    set_plan = f"training.semantic={json.dumps(low_rank)}"
    began = time.monotonic()
    unstruck = Undisturbed(workspace=corpus, runs={}, files={}, steps=0)
    training = Training(unstruck, corpus.root, "--cpus=1", "--set", "training.pack=2", "--set", set_plan)
    assert training.end() == 0, training.stderr()[-3000:]
    took = time.monotonic() - began

    costs = []
    for voice, task in tasks.items():
        packed, alone = Path(task.run_dir), tmp_path / "alone" / voice
        assert is_trained(task)
        assert json.loads((packed / "run.json").read_text())["packed"] is True
        costs.append(json.loads((packed / "cost.json").read_text())["train_seconds"])
        with one_thread():
            assert train_voice(replace(task, run_dir=str(alone)), prepared.base)
        ours, theirs = (
            [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
            for folder in (packed, alone)
        )
        assert [(one["phase"], one["step"], one["kind"]) for one in ours] == [
            (one["phase"], one["step"], one["kind"]) for one in theirs
        ]
        assert saved_weights(packed) == saved_weights(alone)
        for path in sorted((packed / "weights").iterdir()):
            found, wanted = load_file(path), load_file(alone / "weights" / path.name)
            assert found.keys() == wanted.keys()
            for name, tensor in wanted.items():
                assert (found[name] - tensor).norm() <= 0.005 * tensor.norm(), f"{voice} {name}"
        newest = [packed / "weights" / f"{names[-1]}.safetensors" for names in saved_weights(packed).values()]
        assert Synthesiser(prepared.base, *newest).base.release == prepared.base.release
    assert sum(costs) < took


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_or_told_to_end(
    undisturbed: Undisturbed, tmp_path: Path, number: signal.Signals, seed: int
) -> None:
    training = Training(undisturbed, tmp_path / "w")
    training.wait_for(moment(undisturbed, seed))
    workers = processes_titled("RayTrainWorker")
    os.kill(workers[seed % len(workers)], number)
    assert training.end() == 0, training.stderr()[-3000:]
    assert training.files() == undisturbed.files


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_driver(undisturbed: Undisturbed, tmp_path: Path, seed: int) -> None:
    training = Training(undisturbed, tmp_path / "w")
    training.wait_for(moment(undisturbed, seed))
    training.process.kill()
    training.process.wait()
    (training.workspace / "training.json").unlink()
    again = Training(undisturbed, tmp_path / "w")
    assert again.end() == 0, again.stderr()[-3000:]
    assert again.files() == undisturbed.files


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_is_told_to_end_saves_and_says_so(
    undisturbed: Undisturbed, tmp_path: Path, number: signal.Signals
) -> None:
    training = Training(undisturbed, tmp_path / "w")
    training.wait_for(5)
    training.process.send_signal(number)
    assert training.end() == 1
    assert "asked to end; saved: " in training.stderr()
    assert training.stderr().splitlines()[-1] == "gsv: interrupted; run the same command again to go on"
    saved = {
        voice: list((training.workspace / run).glob("checkpoints/*/*.pt")) for voice, run in undisturbed.runs.items()
    }
    assert all(saved.values())
    again = Training(undisturbed, tmp_path / "w")
    assert again.end() == 0, again.stderr()[-3000:]
    assert again.files() == undisturbed.files


@pytest.mark.slow
def test_a_spent_budget_saves_and_the_next_run_goes_on(undisturbed: Undisturbed, tmp_path: Path) -> None:
    training = Training(undisturbed, tmp_path / "w", "--max-hours=0.0000001")
    assert training.end() == 3
    again = Training(undisturbed, tmp_path / "w")
    assert again.end() == 0, again.stderr()[-3000:]
    assert again.files() == undisturbed.files


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head without CPUs and two nodes of one, all on this machine."""
    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_lost_node(undisturbed: Undisturbed, tmp_path: Path, nodes: Any, seed: int) -> None:
    """It does not come back: the group goes on with what is left."""
    both = [nodes.add_node(num_cpus=1) for _ in range(2)]
    nodes.wait_for_nodes()
    training = Training(undisturbed, tmp_path / "w", f"--ray-address={nodes.address}")
    training.wait_for(moment(undisturbed, seed))
    # Not the node that the driver has joined, where the queue is: to lose that one is to lose the driver.
    queue = parent_of(processes_titled("VoiceQueue")[0])
    others = [node for node in both if node.all_processes["raylet"][0].process.pid != queue]
    nodes.remove_node(others[seed % len(others)], allow_graceful=False)
    assert training.end() == 0, training.stderr()[-3000:]
    assert training.files() == undisturbed.files
