"""Train several voices of one base in one process, the adapters of all in one batch.

What is written is what `jobs.train.train_voice` writes, because that is what runs, once per seat of a pack, with
trainers that compute their gradients together. Phases that cannot share a batch (whole weights, the adversarial SoVITS)
train beside it, one voice's step after the other's.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from gsv_core.checkpoints.base import BaseModel
from gsv_core.training.adapter_loop import fill_seats
from gsv_core.training.adapter_trainer import Pack, Seat, packable
from gsv_core.training.schedules import PhasePlan
from jobs.train import Step, VoiceTask, train_voice, trainer_class
from jobs.training_cost import Measured, SharedClock

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Outcome:
    """How the training of one voice ended: finished, stopped with its state saved, or failed with `error`."""

    task: VoiceTask
    finished: bool = False
    error: Exception | None = None
    measured: list[Measured] = field(default_factory=list)


def train_packed(
    take: Callable[[], VoiceTask | None],
    base: BaseModel,
    *,
    seats: int,
    device: str = "cpu",
    on_step: Callable[[Step], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
    on_end: Callable[[Outcome], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """Train what `take` gives until it gives None, `seats` voices at a time; how each ended, in that order.

    `take` is asked for the next voice whenever a seat is free, by one thread at a time. `on_step` and `on_end` are
    called by the threads of the voices. When `should_stop` says so every voice saves and ends; `take` is not asked any
    more.
    """
    outcomes: list[Outcome] = []
    clock = SharedClock()

    def train(pack: Pack, seat: Seat, task: VoiceTask) -> None:
        outcome = Outcome(task=task)
        try:
            with clock.in_hand():
                outcome.finished = train_voice(
                    # Each is told of its share of the memory.
                    replace(
                        task,
                        memory_bytes=task.memory_bytes and task.memory_bytes // seats,
                        gpu_share=task.gpu_share / seats,
                    ),
                    base,
                    device=device,
                    on_note=on_note,
                    on_step=on_step,
                    on_measured=outcome.measured.append,
                    should_stop=should_stop,
                    trainers=partial(_trainers, seat),
                    clock=clock,
                    compute=pack.compute,
                )
        except Exception as error:  # one voice must not stop the others; the caller reports it
            logger.exception("voice %s failed", task.voice)
            outcome.error = error
        outcomes.append(outcome)
        on_end(outcome)

    with Pack(base, device) as pack:
        fill_seats(pack, seats, lambda: None if should_stop() else take(), partial(train, pack))
    return outcomes


def _trainers(seat: Seat, base: BaseModel, phase: str) -> Callable[..., Any]:
    """What makes the trainer of this phase, called as the ordinary classes are."""

    def make(_base: BaseModel, plan: PhasePlan, *, voice: str, device: str, reducer: None = None) -> Any:
        assert reducer is None, "a voice on several workers has no seat in a pack"
        ordinary = partial(trainer_class(base, phase), base, plan, voice=voice, device=device)
        if not packable(plan) or (phase == "wave" and base.semantic_to_mel is None):
            return seat.apart(ordinary)
        if phase == "semantic":
            return seat.semantic_trainer(plan, voice=voice)
        return seat.mel_trainer(plan, voice=voice)

    return make
