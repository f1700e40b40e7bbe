"""Many voices on few workers: one long Ray Train worker group whose workers take voices from a queue.

A Ray Train run costs 20 to 30 s to start; a voice in a warm worker costs only its steps. So all voices share one group:
longest first, each worker with the base loaded once. A voice that fails is tried again and then reported; a worker that
dies makes Ray Train restart the group, and each voice in flight goes on from its last checkpoint. A worker that is told
to end (SIGTERM, as before a spot node is taken away) first saves the step it has reached.

Checkpoints lie in each voice's own run folder, at its own steps: `ray.train.report` is a barrier of the whole group,
and workers that train different voices never reach the same step.
"""

import logging
import signal
import threading
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gsv_core.checkpoints.base import load_base
from gsv_core.checkpoints.releases import Release
from jobs.cluster import Cluster
from jobs.progress import Progress
from jobs.train import Step, VoiceTask, train_voice

logger = logging.getLogger(__name__)

_MOST_LOSSES = 5
"""Every voice in flight is in hand when a worker is lost, so one loss blames nobody."""


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """How the group runs. `lost_workers` is how many worker losses a whole fleet may survive."""

    release: Release
    base_folder: str | None
    attempts: int
    gpus_per_worker: float = 0.0
    lost_workers: int = 20


@dataclass(kw_only=True)
class FleetState:
    """What the queue knows; read by the driver for progress and the result."""

    waiting: list[str] = field(default_factory=list)
    working: dict[str, str] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return sum(step.done for step in self.steps.values())


class VoiceQueue:
    """The voices still to train, longest first. An actor beside the driver, so that it outlives every worker."""

    def __init__(self, tasks: Sequence[VoiceTask], attempts: int) -> None:
        self._tasks = {task.voice: task for task in tasks}
        self._attempts = dict.fromkeys(self._tasks, 0)
        self._losses = dict.fromkeys(self._tasks, 0)
        self._most = attempts
        ordered = sorted(tasks, key=lambda task: (-task.cost, task.voice))
        self._state = FleetState(waiting=[task.voice for task in ordered])

    def join(self, worker: int) -> None:
        """A worker (re)starts: what it had in hand when it was lost waits again, behind the others.

        A voice that was in hand at `_MOST_LOSSES` losses is given up: it may well be what kills the workers.
        """
        voice = self._state.working.pop(str(worker), None)
        if voice is None:
            return
        self._losses[voice] += 1
        if self._losses[voice] < _MOST_LOSSES:
            self._state.waiting.append(voice)
        else:
            self._state.failed[voice] = f"its worker was lost {_MOST_LOSSES} times while it was trained"

    def take(self, worker: int) -> VoiceTask | None:
        """The next voice for `worker`; None when there is none left to begin."""
        if not self._state.waiting:
            return None
        voice = self._state.waiting.pop(0)
        self._state.working[str(worker)] = voice
        return self._tasks[voice]

    def tell(self, step: Step) -> None:
        self._state.steps[step.voice] = step

    def finish(self, worker: int) -> None:
        self._state.trained.append(self._state.working.pop(str(worker)))

    def fail(self, worker: int, error: str) -> None:
        """The voice in hand raised `error`: to be tried again, or given up."""
        voice = self._state.working.pop(str(worker))
        self._attempts[voice] += 1
        if self._attempts[voice] < self._most:
            self._state.waiting.append(voice)
        else:
            self._state.failed[voice] = error

    def release(self, worker: int) -> None:
        """The worker was asked to stop; its voice goes on elsewhere or later, first of all."""
        voice = self._state.working.pop(str(worker), None)
        if voice is not None:
            self._state.waiting.insert(0, voice)

    def read(self) -> FleetState:
        return self._state


def train_fleet(
    tasks: Sequence[VoiceTask],
    settings: FleetSettings,
    cluster: Cluster,
    scratch: Path,
    progress: Progress,
) -> dict[str, str]:
    """Train every task; returns voice → error of those that failed. Ray is started if it is not up.

    Raises:
        RuntimeError: the worker group itself could not be kept alive.
    """
    if not tasks:
        return {}
    cluster.start()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(VoiceQueue)
    queue = actor.options(num_cpus=0, scheduling_strategy=here).remote(tasks, settings.attempts)
    # A GPU is shared by as many workers as its fraction allows; without one, a worker takes one CPU.
    workers = min(len(tasks), cluster.workers)
    resources: dict[str, float] = {"CPU": 1}
    if settings.gpus_per_worker:
        gpus = ray.cluster_resources().get("GPU", 0.0)
        workers = max(1, min(workers, int(gpus / settings.gpus_per_worker)))
        resources["GPU"] = settings.gpus_per_worker
    trainer = TorchTrainer(
        _work,
        train_loop_config={"queue": queue, "settings": settings},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=bool(settings.gpus_per_worker), resources_per_worker=resources
        ),
        torch_config=_StoppableTorchConfig(backend="nccl" if settings.gpus_per_worker >= 1 else "gloo"),
        run_config=RunConfig(
            name=_name(tasks),
            storage_path=str(scratch / "ray_train"),
            failure_config=FailureConfig(max_failures=settings.lost_workers),
        ),
    )
    total = sum(task.steps for task in tasks)
    with progress.bar("train") as bar:
        failure = _fit_and_watch(trainer, queue, lambda state: bar.update(state.done, total, _note(state)))
        state: FleetState = ray.get(queue.read.remote())
        bar.update(state.done, total, f"{len(state.trained)} voices trained")
    if failure is not None and not state.trained:
        raise RuntimeError(f"training ended before any voice was trained: {failure}") from failure
    left = dict.fromkeys([*state.waiting, *state.working.values()], f"not trained: {failure}")
    return {**left, **state.failed}


def _fit_and_watch(trainer: TorchTrainer, queue: Any, show: Any) -> BaseException | None:
    """Run the group while showing how far it is; what ended it early, if anything did."""
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # handed to the caller, who reports it with the voices it cost
            logger.exception("the training group ended early")
            failures.append(error)

    thread = threading.Thread(target=fit, name="train-fleet")
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        show(ray.get(queue.read.remote()))
    return failures[0] if failures else None


def _work(config: dict[str, Any]) -> None:
    """One worker of the group: take voices until none is left, or until it is asked to end."""
    import torch

    queue, settings = config["queue"], config["settings"]
    context = ray.train.get_context()
    worker = context.get_world_rank()
    torch.set_num_threads(1)
    device = str(ray.train.torch.get_device()) if settings.gpus_per_worker else "cpu"
    base = load_base(settings.release, Path(settings.base_folder) if settings.base_folder else None)
    ray.get(queue.join.remote(worker))
    trained = 0
    with _sigterm.heeded() as asked_to_end:
        while not asked_to_end() and (task := ray.get(queue.take.remote(worker))) is not None:
            try:
                finished = train_voice(
                    task,
                    base,
                    device=device,
                    on_step=lambda step: queue.tell.remote(step),
                    should_stop=asked_to_end,
                )
            except Exception as error:  # one voice must not stop the others; the queue reports it
                logger.exception("voice %s failed", task.voice)
                last = traceback.format_exception_only(error)[-1].strip()
                ray.get(queue.fail.remote(worker, last))
            else:
                ray.get((queue.finish if finished else queue.release).remote(worker))
                trained += finished
        if asked_to_end():
            # An error, not an end: Ray Train is to start the group again where there is room.
            raise InterruptedError("the worker was asked to end; its voice is saved")
    ray.train.report({"trained": trained})


class _Sigterm:
    """What SIGTERM means to this process: while a voice is in hand, to save and end; otherwise what it meant before.

    Training runs in a thread, and handlers belong to the main thread: `install` runs there, `heeded` in the other.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._at_work = threading.Event()

    def install(self) -> None:
        before = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            if self._at_work.is_set():
                self._asked.set()
            elif callable(before):
                before(number, frame)

        signal.signal(signal.SIGTERM, handle)

    @contextmanager
    def heeded(self) -> Iterator[Any]:
        """Gives the question whether SIGTERM has come."""
        self._at_work.set()
        try:
            yield self._asked.is_set
        finally:
            self._at_work.clear()


_sigterm = _Sigterm()


class _StoppableBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Torch's setting up of the workers, and then our handler in the main thread of each."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(_heed_sigterm)


class _StoppableTorchConfig(TorchConfig):
    @property
    def backend_cls(self) -> type:
        return _StoppableBackend


def _heed_sigterm() -> None:
    _sigterm.install()


def _note(state: FleetState) -> str:
    running = ", ".join(
        f"{voice} {state.steps[voice].phase}" if voice in state.steps else voice for voice in state.working.values()
    )
    if not running and not state.steps:
        return "starting workers"
    return f"{len(state.trained)} voices done; {running}".removesuffix("; ")


def _name(tasks: Sequence[VoiceTask]) -> str:
    """A name per attempt: Ray Train takes an equal name for a run to be gone on from."""
    return f"fleet-{len(tasks)}-{uuid.uuid4().hex[:8]}"
