"""A small real corpus, made once through the pipeline, and its voices trained once without a disturbance."""

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from gsv_core.checkpoints.base import BaseModel
from jobs.cluster import Cluster
from jobs.config import ClusterConfig, EvaluationConfig, JobConfig, TrainingConfig
from jobs.evaluate import evaluate_runs
from jobs.onboard import choose
from jobs.prepare import Prepared, prepare
from jobs.progress import Silent
from jobs.train import VoiceTask, train_voice
from jobs.workspace import Workspace
from tests.jobs.processes import processes_titled

CONFIG = JobConfig(
    training=TrainingConfig(
        semantic={"steps": 12, "save_every": 6, "evaluate_every": 6, "warm_up_steps": 2},
        wave={"steps": 6, "save_every": 6, "evaluate_every": 6, "warm_up_steps": 2, "longest_frames": 96},
    ),
    evaluation=EvaluationConfig(utterances=1, sentences=1, common=2, prompts=2),
    cluster=ClusterConfig(cpus=2),
)


@dataclass(frozen=True, kw_only=True)
class MadeCorpus:
    """What `prepare` made of the demonstration voices and of a folder with a broken file. Read only."""

    recordings: Path
    workspace: Workspace
    prepared: Prepared
    tasks: dict[str, VoiceTask]

    @property
    def base(self) -> BaseModel:
        return self.prepared.base

    def task(self, voice: str, run_dir: Path) -> VoiceTask:
        """The voice's task with another folder for its run."""
        return replace(self.tasks[voice], run_dir=str(run_dir))


@pytest.fixture(scope="session")
def made(demo_voices: Path, tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> MadeCorpus:
    root = tmp_path_factory.mktemp("made")
    recordings = root / "recordings"
    shutil.copytree(demo_voices, recordings)
    (recordings / "grace").mkdir()
    (recordings / "grace" / "broken.wav").write_bytes(b"RIFF nothing")
    workspace = Workspace.open(root / "workspace")
    prepared = prepare(recordings, workspace, CONFIG, cluster, Silent())
    _, tasks = choose(prepared, workspace, CONFIG)
    return MadeCorpus(recordings=recordings, workspace=workspace, prepared=prepared, tasks=tasks)


@pytest.fixture(scope="session")
def trained(made: MadeCorpus) -> dict[str, VoiceTask]:
    """Both voices trained in this process, one thread, from start to end. Read only."""
    with one_thread():
        for task in made.tasks.values():
            assert train_voice(task, made.base)
    return made.tasks


@dataclass(frozen=True, kw_only=True)
class ScoredCorpus:
    """A copy of the made corpus with its runs scored. Read only."""

    workspace: Workspace
    tasks: dict[str, VoiceTask]


@pytest.fixture(scope="session")
def scored(
    made: MadeCorpus,
    trained: dict[str, VoiceTask],
    cluster: Cluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> ScoredCorpus:
    """Both runs scored, while one of the workers that do it was killed."""
    root = tmp_path_factory.mktemp("scored") / "workspace"
    shutil.copytree(made.workspace.root, root)
    workspace = Workspace.open(root)
    tasks = {
        voice: replace(task, run_dir=str(workspace.run(voice, task.run_id)), corpus=str(workspace.corpus))
        for voice, task in trained.items()
    }
    progress = KillingOnce()
    assert evaluate_runs(list(tasks.values()), CONFIG, cluster, progress) == {}
    assert progress.killed
    return ScoredCorpus(workspace=workspace, tasks=tasks)


class KillingOnce:
    """A Progress that kills an evaluating worker when the first pair is scored."""

    killed = False

    def say(self, line: str) -> None:
        del line

    @contextmanager
    def bar(self, what: str) -> Iterator["KillingOnce"]:
        assert what == "evaluate"
        yield self

    def update(self, done: float, total: float, note: str = "") -> None:
        del note
        if not self.killed and 0 < done < total:
            os.kill(processes_titled("_Evaluator")[0], signal.SIGKILL)
            self.killed = True


@contextmanager
def one_thread() -> Iterator[None]:
    """As many threads as a worker has: another number may sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def weights_of() -> Callable[[VoiceTask], dict[str, str]]:
    """File name → digest of the weights a task saved."""

    def digests(task: VoiceTask) -> dict[str, str]:
        files = (Path(task.run_dir) / "weights").glob("*.safetensors")
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return digests
