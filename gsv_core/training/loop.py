"""One phase of one voice from its first step to its last, resumable at every step.

`fit` takes steps, evaluates and saves; it prints and logs nothing but calls back. Given the same items and plan it
gives the same numbers, whether it ran through or was stopped and resumed (bit-identical on a CPU).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from gsv_core.checkpoints.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from gsv_core.training.batches import BatchOrder, TrainingItem
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


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a phase ended. `records` hold the whole curve, steps before a resume included."""

    steps: int
    finished: bool
    skipped: int
    records: tuple[Record, ...]


class DivergedError(ArithmeticError):
    """Too many steps had no finite gradient: the run cannot be saved by going on."""


class Trainer(Protocol):
    """One network and the step that trains it; `SemanticTrainer` and `WaveTrainer`."""

    phase: str
    voice: str
    plan: PhasePlan
    steps_done: int
    skipped: int
    identity: dict[str, str]

    def length(self, item: TrainingItem) -> int:
        """What the cost of `item` grows with."""
        ...

    def collate(self, items: Sequence[TrainingItem]) -> Any:
        """`items` as the batch that `step` takes."""
        ...

    def step(self, batch: Any) -> dict[str, float]:
        """Train on `batch`; the numbers of this step."""
        ...

    def evaluate(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        """Numbers over `items`, the network left as it is."""
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
    on_step: Callable[[Record], None] = lambda _: None,
    on_save: Callable[[Save], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FitResult:
    """Train until `plan.steps` or until `should_stop`, which is asked before every step.

    `resume` is a folder for checkpoints of this run: what it holds is gone on from, and each save goes there.
    `on_step` sees every record of this call, `on_save` each candidate before its checkpoint is written, so that a
    kill in between makes it again.

    Raises:
        ValueError: no items, or `resume` holds another run's checkpoint.
        DivergedError: more than `plan.most_skipped` steps had no finite gradient.
    """
    assert trainer.plan == plan, "the trainer was made for another plan"
    order = BatchOrder.of([trainer.length(item) for item in items], plan, trainer.voice, trainer.phase)
    records = _restore(trainer, resume)

    def note(kind: str, metrics: dict[str, float]) -> None:
        records.append(Record(phase=trainer.phase, step=trainer.steps_done, kind=kind, metrics=metrics))
        on_step(records[-1])

    def evaluate() -> None:
        if held_out:
            note("held_out", trainer.evaluate(held_out))

    def checkpoint() -> None:
        if resume is not None:
            save_checkpoint(resume, _checkpoint_of(trainer, records))

    if not records:
        evaluate()
    while trainer.steps_done < plan.steps:
        if should_stop():
            checkpoint()
            return FitResult(steps=trainer.steps_done, finished=False, skipped=trainer.skipped, records=tuple(records))
        batch = trainer.collate([items[index] for index in order.batch(trainer.steps_done)])
        note("train", trainer.step(batch))
        if trainer.skipped > plan.most_skipped:
            raise DivergedError(
                f"{trainer.phase} training of {trainer.voice}: {trainer.skipped} of {trainer.steps_done} steps had no "
                f"finite gradient; lower learning_rate (now {plan.learning_rate:g}) or look at the clips"
            )
        last = trainer.steps_done == plan.steps
        if last or trainer.steps_done % plan.evaluate_every == 0:
            evaluate()
        if last or trainer.steps_done % plan.save_every == 0:
            on_save(
                Save(
                    phase=trainer.phase,
                    step=trainer.steps_done,
                    weights=trainer.weights(),
                    metadata=trainer.metadata(),
                )
            )
            checkpoint()
    return FitResult(steps=trainer.steps_done, finished=True, skipped=trainer.skipped, records=tuple(records))


def _restore(trainer: Trainer, folder: Path | None) -> list[Record]:
    checkpoint = latest_checkpoint(folder, trainer.identity) if folder is not None else None
    if checkpoint is None:
        return []
    trainer.load_state(checkpoint.state)
    return [Record(**record) for record in checkpoint.records]


def _checkpoint_of(trainer: Trainer, records: list[Record]) -> Checkpoint:
    return Checkpoint(
        step=trainer.steps_done,
        identity=trainer.identity,
        state=trainer.state(),
        records=[asdict(record) for record in records],
    )
