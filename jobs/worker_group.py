"""What every group of training workers has: a driver that watches it, and workers that can be stopped and asked.

The driver shows how far the group is, keeps the budget, and hears when it is asked to end. A worker tells the queue how
far it is without waiting for an answer, and saves what it has when it is told to end.
"""

import logging
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import ray.exceptions
from ray.train import UserCallback
from ray.train.torch import TorchTrainer

from gsv_core.checkpoints.releases import Release
from gsv_core.checkpoints.weights import write_json
from jobs.progress import Progress
from jobs.train import Step, VoiceTask
from jobs.voice_queue import FleetState

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_TELL_EVERY_S = 0.2
_WRITE_EVERY_S = 2.0
_PATIENCE_S = 60.0
"""For a group to end in order when the driver cannot go on."""
_MOST_NAMED = 4
"""Voices in a line of progress."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop beginning voices and save those in hand. None: no bound."""

    hours: float | None = None
    """Of the clock, from the start of the training."""
    gpu_hours: float | None = None
    """Of all GPUs that the workers hold, whether they are busy or not."""

    def spent(self, seconds: float, gpus: float) -> str | None:
        """What is spent after `seconds` on `gpus`, for people; None while there is some left."""
        if self.hours is not None and seconds >= self.hours * 3600:
            return f"the budget of {self.hours:g} hours is spent"
        if self.gpu_hours is not None and seconds * gpus >= self.gpu_hours * 3600:
            return f"the budget of {self.gpu_hours:g} GPU hours is spent"
        return None


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """How the group runs. `lost_workers` is how many worker losses a fleet may survive, besides two per voice."""

    release: Release
    base_folder: str | None
    attempts: int
    gpus_per_worker: float = 0.0
    pack: int = 1
    """Voices that a worker trains at once, the adapters of all in one batch (`jobs.packed`)."""
    lost_workers: int = 20
    budget: Budget = field(default_factory=Budget)

    @property
    def device(self) -> str:
        return "cuda" if self.gpus_per_worker else "cpu"


class Watch:
    """The driver while the group works: shows how far it is, keeps the budget, and hears when it is asked to end."""

    def __init__(self, settings: FleetSettings, scratch: Path, progress: Progress) -> None:
        self._settings, self._progress = settings, progress
        self._path = scratch / "training.json"
        self._written = 0.0
        self._started = time.monotonic()

    @contextmanager
    def asked_to_end(self) -> Iterator[Any]:
        """Gives the question whether SIGINT or SIGTERM has come. The second one does what it did before."""
        asked = threading.Event()
        if threading.current_thread() is not threading.main_thread():
            yield asked.is_set  # handlers belong to the main thread: whoever called us from another has its own
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in numbers}

        def handle(number: int, frame: FrameType | None) -> None:
            del frame
            asked.set()
            signal.signal(number, before[signal.Signals(number)])

        try:
            for number in numbers:
                signal.signal(number, handle)
            yield asked.is_set
        finally:
            for number in numbers:
                signal.signal(number, before[number])

    @contextmanager
    def told_with_everything(self, asked: Callable[[], bool]) -> Iterator[None]:
        """Where a signal goes to all processes, Ray ends before us: that is being asked to end, and no failure.

        Raises:
            KeyboardInterrupt: that is what happened.
            RuntimeError: Ray was lost without it.
        """
        try:
            yield
        except ray.exceptions.RayError as error:
            if asked():
                raise KeyboardInterrupt from error
            cause = str(error).splitlines()[0]
            raise RuntimeError(
                f"Ray was lost while voices were trained ({cause}); run the same command again: they go on from their "
                "last saves"
            ) from error

    def run(
        self, trainer: TorchTrainer, queue: Any, tasks: Sequence[VoiceTask], workers: int, asked: Callable[[], bool]
    ) -> list[BaseException]:
        """Run a group to its end; what ended it early, if anything did."""
        failures: list[BaseException] = []

        def fit() -> None:
            try:
                trainer.fit()
            except Exception as error:  # handed to the caller, who reports it with the voices it cost
                logger.exception("the training group ended early")
                failures.append(error)

        thread = threading.Thread(target=fit, name="train-fleet", daemon=True)
        thread.start()
        try:
            self._look_on(thread, queue, tasks, workers, asked)
        except Exception:
            # Ray ends this process at once, without a word, if it is shut down while a thread waits for it.
            with suppress(ray.exceptions.RayError):
                ray.get(queue.stop.remote("the driver failed"), timeout=_PATIENCE_S)
            thread.join(_PATIENCE_S)
            raise
        return failures

    def reason_to_stop(self, tasks: Sequence[VoiceTask], workers: int, asked: Callable[[], bool]) -> str | None:
        """Why a group of `workers` has to save and end, or is not begun; None while it may go on."""
        if asked():
            return "asked to end"
        on_gpus, together = self._settings.gpus_per_worker > 0, tasks[0].workers > 1
        gpus = workers * (float(on_gpus) if together else self._settings.gpus_per_worker)
        return self._settings.budget.spent(time.monotonic() - self._started, gpus)

    def _look_on(
        self, thread: threading.Thread, queue: Any, tasks: Sequence[VoiceTask], workers: int, asked: Callable[[], bool]
    ) -> None:
        """Show how far the group is until `thread` ends, and stop it when it is time."""
        voices, total, said = [task.voice for task in tasks], sum(task.steps for task in tasks), 0
        with self._progress.bar("train") as bar:
            while thread.is_alive():
                thread.join(_LOOK_EVERY_S)
                state: FleetState = ray.get(queue.read.remote())
                bar.update(state.done, total, _note(state, len(voices)), _numbers(state, len(voices)))
                for line in state.notes[said:]:
                    self._progress.say(line)
                said = len(state.notes)
                if time.monotonic() - self._written > _WRITE_EVERY_S:
                    self._write(state, voices)
                reason = self.reason_to_stop(tasks, workers, asked)
                if reason and not state.stopped:
                    ray.get(queue.stop.remote(reason))
            state = ray.get(queue.read.remote())
            bar.update(state.done, total, f"{len(state.trained)} voices trained")
        self._write(state, voices)

    def _write(self, state: FleetState, voices: Sequence[str]) -> None:
        """How far each voice is, for whoever looks from outside."""
        self._written = time.monotonic()
        left = None if state.seconds_left is None else round(state.seconds_left)
        described = {voice: _described(voice, state) for voice in voices}
        write_json(self._path, {"voices": described, "seconds_left": left, "workers_lost": state.losses})


def _described(voice: str, state: FleetState) -> dict[str, Any]:
    step = state.steps.get(voice)
    if voice in state.failed:
        name = "failed"
    elif voice in state.trained:
        name = "trained"
    else:
        name = "training" if voice in state.working else "waiting"
    return {
        "state": name,
        "phase": step.phase if step else None,
        "steps": step.done if step else 0,
        "of": step.total if step else None,
        "error": state.failed.get(voice),
    }


def _numbers(state: FleetState, voices: int) -> dict[str, float]:
    numbers = {"voices": voices, "voices_trained": len(state.trained), "voices_failed": len(state.failed)}
    if state.steps and state.seconds_left is not None:
        numbers["seconds_left"] = round(state.seconds_left)
    return dict(numbers)


def last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


class Line:
    """A worker's line to the queue: says now and then how far it is, and never waits for the answer."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._told = 0.0
        self._unsaid: dict[str, Step] = {}
        self._turn = threading.Lock()
        self._answer: Any = None
        self._stopped = False

    def tell(self, step: Step) -> None:
        with self._turn:
            self._unsaid[step.voice] = step
        if time.monotonic() - self._told >= _TELL_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Say what was kept back."""
        with self._turn:
            for step in self._unsaid.values():
                self._answer = self._queue.tell.remote(step)
            self._told, self._unsaid = time.monotonic(), {}

    def stopped(self) -> bool:
        """Whether the queue has said that the voice in hand is to be saved and given back."""
        answer = self._answer
        if not self._stopped and answer is not None:
            ready, _ = ray.wait([answer], timeout=0)
            if ready:
                self._stopped, self._answer = bool(ray.get(ready[0])), None
        if self._stopped:
            self.flush()
        return self._stopped


class Sigterm:
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


SIGTERM = Sigterm()


class TellLosses(UserCallback):
    """Tells the queue which workers died: only their voices can be what killed them. Runs in the controller.

    `together`: all workers have one voice in hand, the one that the queue gave to the first.
    """

    def __init__(self, queue: Any, *, together: bool = False) -> None:
        self._queue, self._together = queue, together

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        del run_context
        ray.get(self._queue.lose.remote([0] if self._together else sorted(worker_exceptions)))


def heed_sigterm() -> None:
    SIGTERM.install()


def _note(state: FleetState, voices: int) -> str:
    held = list(state.working)
    running = ", ".join(
        f"{voice} {state.steps[voice].phase}" if voice in state.steps else voice for voice in held[:_MOST_NAMED]
    ) + (f" and {len(held) - _MOST_NAMED} others" if len(held) > _MOST_NAMED else "")
    if not running and not state.steps:
        return "starting workers"
    failed = f", {len(state.failed)} failed" if state.failed else ""
    return f"{len(state.trained)} of {voices} voices done{failed}; {running}".removesuffix("; ")
