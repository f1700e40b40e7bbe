"""Many voices on few workers: one long Ray Train worker group whose workers take voices from a queue.

A Ray Train run costs 20 to 30 s to start; a voice in a warm worker costs only its steps. So all voices share one group:
longest first, each worker with the base loaded once. A voice that fails is tried again and then reported; a worker that
dies makes Ray Train restart the group, and each voice in flight goes on from its last checkpoint. A worker that is told
to end (SIGTERM, as before a spot node is taken away) first saves the step it has reached; so does every worker when the
driver is told to, or a budget is spent. Voices large enough for several workers go before (`jobs.large_voice`).

Checkpoints lie in each voice's own run folder, at its own steps: `ray.train.report` is a barrier of the whole group,
and workers that train different voices never reach the same step.
"""

import logging
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gsv_core.checkpoints.base import BaseModel, load_base
from jobs.cluster import Cluster
from jobs.large_voice import together_trainer
from jobs.packed import Outcome, train_packed
from jobs.progress import Progress
from jobs.train import VoiceTask, train_voice
from jobs.training_cost import PHASES, Rates, work_of
from jobs.voice_queue import FleetState, VoiceQueue
from jobs.worker_group import SIGTERM, FleetSettings, Line, TellLosses, Watch, heed_sigterm, last_line

logger = logging.getLogger(__name__)

_GROW_EVERY_S = 900.0
"""A group that grows is started again, and its voices go back to their last save: not for every node that comes."""


def train_fleet(
    tasks: Sequence[VoiceTask],
    settings: FleetSettings,
    cluster: Cluster,
    scratch: Path,
    progress: Progress,
) -> dict[str, str]:
    """Train every task; returns voice → error of those that failed or were not begun. Ray is started if it is not up.

    Raises:
        ValueError: a voice wants more workers than there are.
        RuntimeError: the worker group itself could not be kept alive.
        KeyboardInterrupt: the process was asked to end; what was in hand is saved.
    """
    if not tasks:
        return {}
    cluster.start()
    path = scratch / "training_rates.json"
    rates = Rates.read(path)
    watch = Watch(settings, scratch, progress)
    states: list[FleetState] = []
    failures: list[BaseException] = []
    groups = _groups(tasks, settings, cluster)
    with watch.asked_to_end() as asked, watch.told_with_everything(asked):
        for together, group in groups:
            workers = together if together > 1 else _workers(-(-len(group) // settings.pack), settings, cluster)
            seconds = {task.voice: predicted_seconds(task, rates, settings) / together for task in group}
            queue = _queue(group, settings, seconds, 1 if together > 1 else workers)
            if reason := watch.reason_to_stop(group, workers, asked):
                ray.get(queue.stop.remote(reason))
            else:
                make = together_trainer if together > 1 else _trainer
                failures += watch.run(make(queue, len(group), settings, workers, scratch), queue, group, workers, asked)
            states.append(ray.get(queue.read.remote()))
    # Ray Train's notes for going on with a group; ours are in the run folders.
    shutil.rmtree(scratch / "ray_train", ignore_errors=True)
    measured = [one for state in states for one in state.measured]
    if measured:
        for one in measured:
            rates.add(one)
        rates.write(path)
    if asked():
        saved = [f"{step.voice} at step {step.done} of {step.total}" for state in states for step in state.unfinished]
        progress.say(f"train: asked to end; saved: {', '.join(saved) or 'nothing was begun'}")
        raise KeyboardInterrupt
    if failures and not any(state.trained for state in states):
        raise RuntimeError(f"training ended before any voice was trained: {failures[0]}") from failures[0]
    errors: dict[str, str] = {}
    for state in states:
        errors |= _left_over(state, failures[0] if failures else None) | state.failed
    return errors


def _groups(tasks: Sequence[VoiceTask], settings: FleetSettings, cluster: Cluster) -> list[tuple[int, list[VoiceTask]]]:
    """(workers per voice, voices), the largest first.

    Raises:
        ValueError: a voice wants more workers than there are.
    """
    groups: dict[int, list[VoiceTask]] = {}
    for task in tasks:
        groups.setdefault(task.workers, []).append(task)
    there = int(ray.cluster_resources().get("GPU", 0)) if settings.gpus_per_worker else cluster.workers
    most = max(groups)
    if most > max(1, there):
        raise ValueError(
            f"voice {groups[most][0].voice} wants {most} workers and there are {there}; set "
            "training.workers_per_voice to fewer, or give the cluster more"
        )
    return sorted(groups.items(), reverse=True)


def _queue(group: list[VoiceTask], settings: FleetSettings, seconds: dict[str, float], workers: int) -> Any:
    """The queue as an actor beside the driver, so that it outlives every worker."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(VoiceQueue)
    return actor.options(num_cpus=0, scheduling_strategy=here).remote(group, settings.attempts, seconds, workers)


def predicted_seconds(task: VoiceTask, rates: Rates, settings: FleetSettings) -> float:
    """Seconds of one worker that the training of a voice will take."""
    total = 0.0
    for phase in PHASES:
        plan = getattr(task.recipe, phase)
        work = work_of(plan, task.rows, phase)
        total += rates.seconds(settings.release, phase, plan, settings.device, work)
    return total


def _workers(wanted: int, settings: FleetSettings, cluster: Cluster) -> int:
    """A GPU is shared by as many workers as its fraction allows; without one, a worker takes one CPU."""
    workers = min(wanted, cluster.workers)
    if not settings.gpus_per_worker:
        return workers
    gpus = ray.cluster_resources().get("GPU", 0.0)
    return max(1, min(workers, int(gpus / settings.gpus_per_worker)))


def _trainer(queue: Any, voices: int, settings: FleetSettings, workers: int, scratch: Path) -> TorchTrainer:
    resources: dict[str, float] = {"CPU": 1}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    size: dict[str, Any] = {"num_workers": workers}
    if workers > 1 and sum(node["Alive"] for node in ray.nodes()) > 1:
        # One of several nodes may be lost for good: the others go on without it.
        size = {"num_workers": (1, workers), "elastic_resize_monitor_interval_s": _GROW_EVERY_S}
    return TorchTrainer(
        _work,
        train_loop_config={"queue": queue, "settings": settings},
        scaling_config=ScalingConfig(
            **size,
            use_gpu=bool(settings.gpus_per_worker),
            resources_per_worker=resources,
        ),
        torch_config=_FleetConfig(queue=queue),
        run_config=RunConfig(
            # A name per attempt: Ray Train takes an equal name for a run to be gone on from.
            name=f"fleet-{voices}-{uuid.uuid4().hex[:8]}",
            storage_path=str(scratch / "ray_train"),
            failure_config=FailureConfig(max_failures=settings.lost_workers + 2 * voices),
            callbacks=[TellLosses(queue)],  # type: ignore[list-item]  # typed for version 1
        ),
    )


def _left_over(state: FleetState, failure: BaseException | None) -> dict[str, str]:
    """Voice → why it is not trained, of those that nothing is wrong with."""
    reason = state.stopped or str(failure)
    left = {}
    for voice in [*state.waiting, *state.working]:
        step = state.steps.get(voice)
        begun = f"; saved at step {step.done} of {step.total}, the same command goes on there" if step else ""
        left[voice] = f"not trained: {reason}{begun}"
    return left


def _work(config: dict[str, Any]) -> None:
    """One worker of the group: take voices until none is left, or until it is asked to end."""
    import torch

    queue, settings = config["queue"], config["settings"]
    worker = ray.train.get_context().get_world_rank()
    torch.set_num_threads(1)
    device = str(ray.train.torch.get_device()) if settings.gpus_per_worker else "cpu"
    try:
        base = load_base(settings.release, Path(settings.base_folder) if settings.base_folder else None)
    except (ValueError, OSError) as error:  # as it would in every worker of every further group
        ray.get(queue.stop.remote(f"the base cannot be loaded: {last_line(error)}"))
        ray.train.report({})
        return
    line = Line(queue)
    with SIGTERM.heeded() as asked_to_end:

        def should_stop() -> bool:
            return asked_to_end() or line.stopped()

        def take() -> VoiceTask | None:
            return None if asked_to_end() else ray.get(queue.take.remote(worker))

        def end(outcome: Outcome) -> None:
            voice = outcome.task.voice
            line.flush()
            if outcome.error is not None:  # one voice must not stop the others; the queue reports it
                ray.get(queue.fail.remote(voice, last_line(outcome.error)))
            elif outcome.finished:
                ray.get(queue.finish.remote(voice, outcome.measured))
            else:
                ray.get(queue.release.remote(voice))

        hooks = {"on_step": line.tell, "on_note": queue.note.remote, "should_stop": should_stop}
        if settings.pack > 1:
            train_packed(take, base, seats=settings.pack, device=device, on_end=end, **hooks)
        else:
            while (task := take()) is not None:
                end(_train(task, base, device, hooks))
        if asked_to_end():
            # An error, not an end: Ray Train is to start the group again where there is room.
            raise InterruptedError("the worker was asked to end; its voice is saved")
    ray.train.report({})


def _train(task: VoiceTask, base: BaseModel, device: str, hooks: dict[str, Any]) -> Outcome:
    """Train one voice by itself; how it ended."""
    outcome = Outcome(task=task)
    try:
        outcome.finished = train_voice(task, base, device=device, on_measured=outcome.measured.append, **hooks)
    except Exception as error:  # the caller reports it
        logger.exception("voice %s failed", task.voice)
        outcome.error = error
    return outcome


class _FleetBackend(Backend):
    """No process group: workers with different voices have nothing to say to each other. Runs in the controller."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """A group starts, the first or one after a loss, in which the others were ended, too."""
        ray.get(backend_config.queue.begin.remote())
        worker_group.execute(heed_sigterm)


@dataclass
class _FleetConfig(TorchConfig):
    queue: Any = None

    @property
    def backend_cls(self) -> type:
        return _FleetBackend
