"""One phase of one voice from its first step to its last, resumable at every step.

`fit` takes steps, evaluates and saves; it prints and logs nothing but calls back. Given the same items and plan it
gives the same numbers, whether it ran through or was stopped and resumed (bit-identical on a CPU). Every decision,
early stop included, follows from the records, which checkpoints hold.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from gsv_core.checkpoints.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from gsv_core.training.batches import BatchOrder, TrainingItem
from gsv_core.training.pages import return_large_blocks
from gsv_core.training.parallel import Reducer, part_of
from gsv_core.training.schedules import PhasePlan


@dataclass(frozen=True, kw_only=True)
class Record:
    """Numbers of one step (`train`) or of the held-out clips after `step` steps (`held_out`)."""

    phase: str
    step: int
    kind: str
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Save:
    """Weights after `step` steps, one candidate to choose from: what differs from the base, and of what."""

    phase: str
    step: int
    weights: dict[str, Tensor]
    metadata: dict[str, str]
    replaces: int | None = None
    """The step of an earlier candidate that is of no more use: it was the best one only for a while."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a phase ended. `records` hold the whole curve, steps before a resume included."""

    steps: int
    finished: bool
    ended: Literal["steps", "early", "stopped"]
    """All steps of the plan; no better for `patience` evaluations; asked to stop, and to be gone on from."""
    reason: str
    """The same for people, in one line."""
    skipped: int
    records: tuple[Record, ...]


class DivergedError(ArithmeticError):
    """Too many steps had no finite gradient: the run cannot be saved by going on."""


class Trainer(Protocol):
    """One network and the step that trains it: `SemanticTrainer`, `WaveTrainer`, `MelTrainer`."""

    phase: str
    score: str
    """Which number of `evaluate` says how good the network is; lower is better."""
    reducer: Reducer | None
    voice: str
    plan: PhasePlan
    steps_done: int
    skipped: int
    identity: dict[str, str]

    def check(self, items: Sequence[TrainingItem]) -> None:
        """Raise ValueError where one was made for another release."""
        ...

    def length(self, item: TrainingItem) -> int:
        """What the cost of `item` grows with."""
        ...

    def collate(self, items: Sequence[TrainingItem]) -> Any:
        """`items` as the batch that `step` takes."""
        ...

    def step(self, batch: Any) -> dict[str, float]:
        """Train on a batch or on a list of its parts, perhaps an empty one; the numbers of this step."""
        ...

    def evaluate(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        """Numbers over `items`, the network left as it is."""
        ...

    def speak(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        """Numbers of the signal that the network makes of `items` on its own; dear, so only at saves."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """What synthesis needs and differs from the base."""
        ...

    def metadata(self) -> dict[str, str]:
        """What `weights` belong to."""
        ...

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to go on."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def fit(
    trainer: Trainer,
    items: Sequence[TrainingItem],
    held_out: Sequence[TrainingItem],
    plan: PhasePlan,
    *,
    resume: Path | None = None,
    save_every_s: float = math.inf,
    on_step: Callable[[Record], None] = lambda _: None,
    on_save: Callable[[Save], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FitResult:
    """Train until `plan.steps`, until nothing gets better, or until `should_stop`, which is asked before every step.

    `resume` is a folder for checkpoints of this run: what it holds is gone on from, and each save goes there, as does
    the state of a step after which the newest is older than `save_every_s`: so much a kill costs at most.
    `on_step` sees every record of this call, `on_save` each candidate before its checkpoint is written, so that a
    kill in between makes it again. Of several ranks all call `on_step` and ask `should_stop`, the first alone saves.

    Raises:
        ValueError: no items, items of another release, or `resume` holds another run's checkpoint.
        DivergedError: more than `plan.most_skipped` steps had no finite gradient.
    """
    assert trainer.plan == plan, "the trainer was made for another plan"
    trainer.check([*items, *held_out])
    return_large_blocks(plan.checkpoint_layers)
    lengths = [trainer.length(item) for item in items]
    order = BatchOrder.of(lengths, plan, trainer.voice, trainer.phase)
    # As many clips as are held out: what the network makes of those shows what it has learnt by heart.
    seen = sorted(items, key=lambda item: item.clip_id)[: len(held_out)]
    records = _restore(trainer, resume)
    saves = trainer.reducer is None or trainer.reducer.rank == 0
    saved_at = time.monotonic()

    def note(kind: str, metrics: dict[str, float]) -> None:
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        records.append(Record(phase=trainer.phase, step=trainer.steps_done, kind=kind, metrics=finite))
        on_step(records[-1])

    def evaluate(saving: bool) -> None:
        metrics = trainer.evaluate(held_out)
        if saving:
            metrics |= {f"seen_{name}": value for name, value in trainer.evaluate(seen).items()}
            metrics |= trainer.speak(held_out)
        note("held_out", metrics)

    candidates = _Candidates(on_save if saves else lambda _: None)

    def save(replaces: int | None) -> Save:
        weights = trainer.weights() if saves else {}
        step, metadata = trainer.steps_done, trainer.metadata()
        return Save(phase=trainer.phase, step=step, weights=weights, metadata=metadata, replaces=replaces)

    def checkpoint() -> None:
        nonlocal saved_at
        candidates.settle()
        if resume is not None and saves:
            save_checkpoint(resume, _checkpoint_of(trainer, records))
        saved_at = time.monotonic()

    def result(ended: Literal["steps", "early", "stopped"], reason: str) -> FitResult:
        steps, skipped, finished = trainer.steps_done, trainer.skipped, ended != "stopped"
        return FitResult(
            steps=steps, finished=finished, ended=ended, reason=reason, skipped=skipped, records=tuple(records)
        )

    if held_out and not records:
        evaluate(saving=False)
    while trainer.steps_done < plan.steps:
        best = _Best.of(records, trainer.score, plan)
        if best.is_stale:
            return result("early", f"no better than at step {best.step} in {plan.patience} evaluations")
        if should_stop():
            checkpoint()
            return result("stopped", f"asked to stop at step {trainer.steps_done}")
        chosen = part_of(order.batch(trainer.steps_done), trainer.reducer)
        parts = [
            trainer.collate([items[index] for index in part])
            for part in order.parts(chosen, accumulate=plan.accumulate, most_frames=plan.most_frames)
        ]
        note("train", trainer.step(parts) | ({"skipped": float(trainer.skipped)} if trainer.skipped else {}))
        if trainer.skipped > plan.most_skipped:
            raise DivergedError(_diverged(trainer, [items[index].clip_id for index in chosen]))
        last, step = trainer.steps_done == plan.steps, trainer.steps_done
        due = last or step % plan.save_every == 0
        evaluated = bool(held_out) and (due or step % plan.evaluate_every == 0)
        if evaluated:
            evaluate(saving=due)
        now = _Best.of(records, trainer.score, plan)
        if evaluated and now.step != step:
            candidates.settle()
        # The best so far is a candidate, too; that of before is not, unless it was to be saved anyway.
        better = bool(plan.patience) and now.step == step
        replaces = best.step if better and best.step % plan.save_every else None
        if due or (now.is_stale and now.step == 0 and step < plan.save_every):
            candidates.give(save(replaces))
        elif better:
            candidates.hold(save(replaces))
        if due or now.is_stale or time.monotonic() - saved_at >= save_every_s:
            checkpoint()
    return result("steps", f"all {plan.steps} steps")


class _Candidates:
    """Hands candidates on, the best so far only once the next evaluation was no better.

    In a good run nearly every evaluation is the best for a while, and weights are large.
    """

    def __init__(self, on_save: Callable[[Save], None]) -> None:
        self._on_save = on_save
        self._held: Save | None = None

    def hold(self, save: Save) -> None:
        """`save` is the best so far; what was held before it is forgotten."""
        self._held = self._in_place_of_held(save)

    def give(self, save: Save) -> None:
        self._on_save(self._in_place_of_held(save))
        self._held = None

    def settle(self) -> None:
        """What is held stays the best for now."""
        if self._held is not None:
            self._on_save(self._held)
            self._held = None

    def _in_place_of_held(self, save: Save) -> Save:
        return save if self._held is None else replace(save, replaces=self._held.replaces)


@dataclass(frozen=True)
class _Best:
    """When the held-out clips were best, as far as the records go."""

    step: int
    is_stale: bool
    """The plan's patience is at its end."""

    @classmethod
    def of(cls, records: Sequence[Record], score: str, plan: PhasePlan) -> "_Best":
        found = [(r.metrics.get(score, math.inf), r.step) for r in records if r.kind == "held_out"]
        if not found:
            return cls(0, is_stale=False)
        value, step = min(found)
        since = sum(later > step for _, later in found)
        return cls(step, is_stale=bool(plan.patience) and since >= plan.patience and math.isfinite(value))


def _diverged(trainer: Trainer, clip_ids: Sequence[str]) -> str:
    return (
        f"{trainer.phase} training of {trainer.voice}: {trainer.skipped} of {trainer.steps_done} steps had no finite "
        f"gradient, the last with {', '.join(clip_ids[:8])}; lower learning_rate (now {trainer.plan.learning_rate:g}) "
        "or look at these clips; what was saved before is kept"
    )


def _restore(trainer: Trainer, folder: Path | None) -> list[Record]:
    checkpoint = latest_checkpoint(folder, trainer.identity) if folder is not None else None
    if checkpoint is None:
        return []
    try:
        trainer.load_state(checkpoint.state)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the checkpoint of step {checkpoint.step} in {folder} holds weights of another shape than this plan "
            f"trains ({str(error).splitlines()[0]}); remove the folder to begin this phase again"
        ) from error
    return [Record(**record) for record in checkpoint.records]


def _checkpoint_of(trainer: Trainer, records: list[Record]) -> Checkpoint:
    return Checkpoint(
        step=trainer.steps_done,
        identity=trainer.identity,
        state=trainer.state(),
        records=[asdict(record) for record in records],
    )
