"""The voices a fleet still has to train: which comes next, which failed, which worker has which, and how long it takes.

An actor beside the driver, so that it outlives every worker. It knows nothing of Ray or torch.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from jobs.train import Step, VoiceTask
from jobs.training_cost import Measured, makespan

MOST_LOSSES = 5
"""So often a voice may be in hand while its worker dies by itself, without getting further in between."""
_FURTHER = 0.05
"""Of all its steps: what is no step forward by accident."""


@dataclass(kw_only=True)
class FleetState:
    """What the queue knows; read by the driver for progress and the result."""

    waiting: list[str] = field(default_factory=list)
    working: dict[str, int] = field(default_factory=dict)
    """Voice → worker."""
    trained: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Voice → error."""
    steps: dict[str, Step] = field(default_factory=dict)
    stopped: str | None = None
    """Why no further voice is begun and those in hand are saved."""
    measured: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What people should know, a line each, in order."""
    losses: int = 0
    """Workers that died."""
    seconds_left: float | None = None

    @property
    def done(self) -> int:
        return sum(step.done for step in self.steps.values())

    @property
    def unfinished(self) -> list[Step]:
        """How far the voices are that were begun and have not ended, in order of name."""
        ended = {*self.trained, *self.failed}
        return [step for voice, step in sorted(self.steps.items()) if voice not in ended]


class VoiceQueue:
    """The voices still to train, longest first by `seconds`, what each is predicted to take."""

    def __init__(
        self, tasks: Sequence[VoiceTask], attempts: int, seconds: dict[str, float] | None = None, workers: int = 1
    ) -> None:
        self._tasks = {task.voice: task for task in tasks}
        self._seconds = seconds or {task.voice: float(task.steps) for task in tasks}
        self._workers = workers
        self._most = attempts
        self._attempts = dict.fromkeys(self._tasks, 0)
        self._losses = dict.fromkeys(self._tasks, 0)
        self._lost_at: dict[str, int] = {}
        self._began: dict[str, tuple[float, int | None]] = {}
        ordered = sorted(tasks, key=lambda task: (-self._seconds[task.voice], task.voice))
        self._state = FleetState(waiting=[task.voice for task in ordered])

    def begin(self) -> None:
        """A group of workers starts, and none of an earlier one is left: what was in hand waits again, in its place."""
        for voice in list(self._state.working):
            del self._state.working[voice]
            self._put_back(voice)

    def lose(self, workers: Sequence[int]) -> None:
        """These workers died by themselves. A voice in such hands too often is given up: it may be what kills them."""
        self._state.losses += len(workers)
        for voice in [voice for voice, worker in self._state.working.items() if worker in workers]:
            del self._state.working[voice]
            step = self._state.steps.get(voice)
            done, total = (step.done, step.total) if step else (0, 1)
            if done > self._lost_at.get(voice, 0) + _FURTHER * total:
                self._losses[voice] = 0
            self._lost_at[voice] = max(done, self._lost_at.get(voice, 0))
            self._losses[voice] += 1
            if self._losses[voice] < MOST_LOSSES:
                self._state.waiting.append(voice)
            else:
                self._state.failed[voice] = f"its worker was lost {MOST_LOSSES} times while it was trained"

    def take(self, worker: int) -> VoiceTask | None:
        """The next voice for `worker`; None when there is none left to begin."""
        if not self._state.waiting or self._state.stopped:
            return None
        voice = self._state.waiting.pop(0)
        self._state.working[voice] = worker
        self._began[voice] = (time.monotonic(), None)
        return self._tasks[voice]

    def tell(self, step: Step) -> bool:
        """How far a voice is. Answers whether it has to be saved and given back now."""
        began, first = self._began.get(step.voice, (time.monotonic(), None))
        if first is None:
            # Steps that an earlier attempt made say nothing about how fast this one goes.
            self._began[step.voice] = (began, step.done - 1)
        self._state.steps[step.voice] = step
        return self._state.stopped is not None

    def note(self, line: str) -> None:
        self._state.notes.append(line)

    def finish(self, voice: str, measured: Sequence[Measured] = ()) -> None:
        del self._state.working[voice]
        self._state.trained.append(voice)
        self._state.measured.extend(measured)

    def fail(self, voice: str, error: str) -> None:
        """Training raised `error`: to be tried again, or given up."""
        del self._state.working[voice]
        self._attempts[voice] += 1
        if self._attempts[voice] < self._most:
            self._state.waiting.append(voice)
        else:
            self._state.failed[voice] = error

    def release(self, voice: str) -> None:
        """The worker was asked to stop; the voice goes on elsewhere or later, first of all."""
        if self._state.working.pop(voice, None) is not None:
            self._state.waiting.insert(0, voice)

    def stop(self, reason: str) -> None:
        """Begin no voice any more, and have those in hand saved."""
        self._state.stopped = self._state.stopped or reason

    def read(self) -> FleetState:
        self._state.seconds_left = makespan(
            [self._left(voice) for voice in [*self._state.waiting, *self._state.working]], self._workers
        )
        return self._state

    def _left(self, voice: str) -> float:
        """Seconds that `voice` still needs: as predicted until it moves, then as fast as it goes."""
        step, (began, first) = self._state.steps.get(voice), self._began.get(voice, (0.0, None))
        if step is None:
            return self._seconds[voice]
        share_left = 1 - step.done / step.total
        predicted = self._seconds[voice] * share_left
        made = step.done - (first if first is not None else step.done)
        if made < step.total / 10 or voice not in self._state.working:
            return predicted
        # Of voices that a worker trains at once each has a part of it; the prediction is in seconds of a whole one.
        beside = sum(worker == self._state.working[voice] for worker in self._state.working.values())
        pace = (time.monotonic() - began) / made / beside
        # The phases differ in speed, so that neither is believed alone.
        return (predicted + pace * (step.total - step.done)) / 2

    def _put_back(self, voice: str) -> None:
        """Where its predicted cost places it: it is no more likely to fail than the others."""
        waiting = self._state.waiting
        place = sum((-self._seconds[other], other) < (-self._seconds[voice], voice) for other in waiting)
        waiting.insert(place, voice)
