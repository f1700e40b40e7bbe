"""Large voices: a Ray Train run whose workers train one voice together, one voice after another.

Each rank computes its part of every batch; gradients and losses are summed over all (`gsv_core.training.parallel`), so
that the curve is that of one worker at the same batch, up to the order of summation. The first rank asks the queue for
voices, tells the others, and writes. What kills one rank, or is asked of one, ends the step of all: they stop at the
same step, and go on there when the group is started again.
"""

import logging
import uuid
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from gsv_core.checkpoints.base import load_base
from gsv_core.training.parallel import TorchReducer
from jobs.train import VoiceTask, train_voice
from jobs.worker_group import SIGTERM, FleetSettings, Line, TellLosses, heed_sigterm, last_line

logger = logging.getLogger(__name__)


def together_trainer(queue: Any, voices: int, settings: FleetSettings, workers: int, scratch: Path) -> TorchTrainer:
    """A run of `workers` that train the voices of `queue` together, each with a whole GPU where there are any."""
    on_gpus = settings.gpus_per_worker > 0
    return TorchTrainer(
        _work_together,
        train_loop_config={"queue": queue, "settings": settings},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=on_gpus,
            resources_per_worker={"CPU": 1, "GPU": 1} if on_gpus else {"CPU": 1},
        ),
        torch_config=_TogetherConfig(backend="nccl" if on_gpus else "gloo", queue=queue),
        run_config=RunConfig(
            name=f"large-{voices}-{uuid.uuid4().hex[:8]}",
            storage_path=str(scratch / "ray_train"),
            failure_config=FailureConfig(max_failures=settings.lost_workers + settings.attempts * voices),
            callbacks=[TellLosses(queue, together=True)],  # type: ignore[list-item]  # typed for version 1
        ),
    )


def _work_together(config: dict[str, Any]) -> None:
    """One rank of the group."""
    queue, settings = config["queue"], config["settings"]
    first = ray.train.get_context().get_world_rank() == 0
    torch.set_num_threads(1)
    device = str(ray.train.torch.get_device()) if settings.gpus_per_worker else "cpu"
    base = load_base(settings.release, Path(settings.base_folder) if settings.base_folder else None)
    reducer = TorchReducer(device)
    line = Line(queue)
    with SIGTERM.heeded() as asked_to_end:

        def should_stop() -> bool:
            return reducer.total([float(asked_to_end() or (first and line.stopped()))])[0] > 0

        while not should_stop() and (task := _next_voice(queue, first=first)) is not None:
            try:
                finished = train_voice(
                    task,
                    base,
                    device=device,
                    reducer=reducer,
                    on_step=line.tell if first else lambda _: None,
                    on_note=queue.note.remote if first else lambda _: None,
                    should_stop=should_stop,
                )
            except Exception as error:
                # The other ranks may wait for this one in a sum: the group ends, and is started again for the rest.
                if first:
                    ray.get(queue.fail.remote(task.voice, last_line(error)))
                raise
            if first:
                line.flush()
                ray.get((queue.finish if finished else queue.release).remote(task.voice))
        if reducer.total([float(asked_to_end())])[0] > 0:
            raise InterruptedError("a worker was asked to end; the voice is saved")
    ray.train.report({})


def _next_voice(queue: Any, *, first: bool) -> VoiceTask | None:
    """What the first rank is given, on every rank."""
    given = [ray.get(queue.take.remote(0)) if first else None]
    torch.distributed.broadcast_object_list(given, src=0)
    return given[0]


class _TogetherBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Torch's process group, and our handler in the main thread of each worker. Runs in the controller."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        ray.get(backend_config.queue.begin.remote())
        worker_group.execute(heed_sigterm)


class _TogetherConfig(TorchConfig):
    def __init__(self, *, backend: str, queue: Any) -> None:
        super().__init__(backend=backend)
        self.queue = queue

    @property
    def backend_cls(self) -> type:
        return _TogetherBackend
