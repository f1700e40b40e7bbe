"""Many voices' phases at a time, each from its first step to its last: `fit` for a pack.

Every voice runs the ordinary `fit`, with its own items, plan, evaluation, early stop, saves and checkpoints; only the
gradients of a step are computed for all together. A voice that ends, fails or is told to stop leaves the others as they
are, and the next waiting one takes its seat. The same runs, in the same order on the same seats, give the same numbers
bit by bit on a CPU; in other company the numbers of a voice differ by rounding (`adapter_trainer`).
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from gsv_core.checkpoints.base import BaseModel
from gsv_core.training.adapter_trainer import Pack, Seat
from gsv_core.training.batches import TrainingItem
from gsv_core.training.loop import FitResult, Record, Save, fit
from gsv_core.training.schedules import PhasePlan

logger = logging.getLogger(__name__)

Job = TypeVar("Job")


@dataclass(frozen=True, kw_only=True)
class VoiceRun:
    """One phase, `semantic` or `wave`, of one voice: what `fit` takes."""

    voice: str
    phase: str
    plan: PhasePlan
    items: Sequence[TrainingItem]
    held_out: Sequence[TrainingItem] = ()
    resume: Path | None = None
    on_step: Callable[[Record], None] = lambda _: None
    on_save: Callable[[Save], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False


def fit_many(
    base: BaseModel, runs: Sequence[VoiceRun], *, seats: int = 8, device: torch.device | str = "cpu"
) -> dict[str, FitResult | Exception]:
    """Train all `runs`, `seats` of them at a time in one batch; voice → its result, or what made it fail.

    The plans train low-rank adapters, all of one rank for a phase to be shared; steps, rates, batches and seeds may
    differ.

    Raises:
        ValueError: no seat, or a voice that is there twice.
    """
    if seats < 1:
        raise ValueError(f"voices need a seat to train on, got {seats} seats")
    voices = [run.voice for run in runs]
    twice = sorted({voice for voice in voices if voices.count(voice) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} would train twice at once; give each voice one run")
    results: dict[str, FitResult | Exception] = {}

    def train(seat: Seat, run: VoiceRun) -> None:
        try:
            results[run.voice] = _fit(seat, run)
        except Exception as error:  # handed to the caller: the other voices go on
            logger.exception("%s training of %s failed", run.phase, run.voice)
            results[run.voice] = error

    waiting = iter(runs)
    with Pack(base, device) as pack:
        fill_seats(pack, min(seats, len(runs)), lambda: next(waiting, None), train)
    return {voice: results[voice] for voice in voices}


def fill_seats(pack: Pack, seats: int, take: Callable[[], Job | None], train: Callable[[Seat, Job], None]) -> None:
    """Have `train` called with what `take` gives, on `seats` seats at a time, until `take` has nothing more.

    Raises:
        Exception: what `take` or `train` raised first; the other seats come to their end before.
    """
    lock = threading.Lock()

    def jobs() -> Iterator[Job]:
        while True:
            with lock:
                job = take()
            if job is None:
                return
            yield job

    def work(seat: Seat) -> None:
        try:
            for job in jobs():
                train(seat, job)
                seat.clear()
        finally:
            seat.clear()
            seat.stand()

    places = [pack.seat() for _ in range(seats)]
    with ThreadPoolExecutor(max(1, seats), thread_name_prefix="seat") as threads:
        for done in [threads.submit(work, seat) for seat in places]:
            done.result()


def _fit(seat: Seat, run: VoiceRun) -> FitResult:
    make = seat.semantic_trainer if run.phase == "semantic" else seat.mel_trainer
    return fit(
        make(run.plan, voice=run.voice),
        run.items,
        run.held_out,
        run.plan,
        resume=run.resume,
        on_step=run.on_step,
        on_save=run.on_save,
        should_stop=run.should_stop,
    )
