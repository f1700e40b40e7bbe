"""What one phase of a training does: how many steps, on which weights, at which rate.

The rate rises linearly during the warm-up and then falls along half a cosine (Loshchilov and Hutter 2016,
arXiv:1608.03983) to a share of its peak. What GPT-SoVITS does instead stands beside it (`upstream_...`): GPT computes
such a curve and then runs at a constant rate, SoVITS falls by a fixed factor per pass over the data.
"""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from gsv_core.training.precision import Precision


class Trains(StrEnum):
    """Which weights of a network a phase changes. The trainers list the modules behind each name."""

    EVERYTHING = "everything"
    UPPER_LAYERS = "upper_layers"
    ACOUSTIC_SIDE = "acoustic_side"
    PROJECTIONS = "projections"
    LOW_RANK = "low_rank"
    NOTHING = "nothing"


class Schedule(StrEnum):
    """How the rate of a phase goes, and for GPT all that belongs to upstream's way of making a step."""

    COSINE = "cosine"
    """Warm-up, then half a cosine. GPT: AdamW, mean loss over real tokens, a step after each batch."""
    UPSTREAM_SEMANTIC = "upstream_semantic"
    """GPT as upstream trains it: ScaledAdam at one rate after a first step at five times that, gradients of several
    batches summed, its padding mask, padding in the loss. `steps` counts batches."""
    UPSTREAM_WAVE = "upstream_wave"
    """SoVITS as upstream trains it: a fixed decay per pass, applied once before the first."""


_FROM_ONE = ("batch_size", "save_every", "evaluate_every", "longest_frames", "rank", "most_skipped", "accumulate")


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One phase, GPT or SoVITS, of one voice. `steps` counts optimiser steps; 0 leaves the base as it is."""

    steps: int
    batch_size: int
    learning_rate: float
    trains: Trains = Trains.EVERYTHING
    schedule: Schedule = Schedule.COSINE
    batches_per_pass: int = 0
    """What upstream's schedules count as a pass over the data; not used by the others."""
    warm_up_steps: int = 0
    final_rate_share: float = 0.1
    """The rate of the last step, as a share of `learning_rate`."""
    save_every: int = 50
    """Weights to choose from later, and a checkpoint to resume from; the last step always saves."""
    evaluate_every: int = 10
    gradient_clip: float = 1.0
    """Longest gradient norm of a GPT step. SoVITS's are measured and not clipped."""
    weight_decay: float = 0.01
    longest_frames: int = 1000
    """SoVITS: a clip beyond this gives a window of this many frames, drawn anew in each step."""
    rank: int = 32
    """Of the LoRA adapters, where low-rank weights train."""
    text_rate_share: float = 0.4
    """SoVITS: rate of the text side as a share of the rest's."""
    most_skipped: int = 10
    """Steps without a finite gradient before the run is given up."""
    accumulate: int = 1
    """Parts that a batch is computed in, one behind the other, to need less memory: gradients add up, and the result is
    that of the whole batch."""
    most_frames: int = 0
    """Most padded columns of a part (GPT: phonemes and tokens, SoVITS: frames), whatever number of clips that is; 0
    sets no bound. One clip is never divided."""
    checkpoint_layers: bool = False
    """Keep no activations of GPT's and the flow's layers and of SoVITS's decoder, and compute them again in the
    backward pass: a second forward pass of time, the same numbers."""
    patience: int = 0
    """End after this many evaluations of the held-out clips without a better one than the best; 0 trains all steps."""
    preference: bool = False
    """GPT: also prefer the real tokens of a clip to ones with a span repeated or missing (upstream's DPO option)."""
    augment: bool = False
    """SoVITS: vary speed and level of the clips, and the noise in what shows the timbre (`augmentation`)."""
    precision: Precision = Precision.FLOAT32
    """What matrices and convolutions are multiplied in."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _FROM_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"plan: {name} must be at least 1, got {getattr(self, name)}")
        if self.steps < 0 or self.warm_up_steps < 0:
            raise ValueError(f"plan: steps and warm_up_steps count from 0, got {self.steps} and {self.warm_up_steps}")
        if self.most_frames < 0 or self.patience < 0:
            raise ValueError(f"plan: most_frames and patience count from 0, got {self.most_frames} and {self.patience}")
        if not self.learning_rate > 0 or not self.gradient_clip > 0:
            raise ValueError(
                f"plan: learning_rate and gradient_clip must be positive, got {self.learning_rate} and "
                f"{self.gradient_clip}"
            )
        if not 0 <= self.final_rate_share <= 1 or not 0 <= self.text_rate_share <= 1:
            raise ValueError(
                f"plan: final_rate_share and text_rate_share are shares in [0, 1], got {self.final_rate_share} and "
                f"{self.text_rate_share}"
            )
        object.__setattr__(self, "trains", Trains(self.trains))
        object.__setattr__(self, "schedule", Schedule(self.schedule))
        object.__setattr__(self, "precision", Precision(self.precision))
        if self.schedule is not Schedule.COSINE and self.batches_per_pass < 1:
            raise ValueError(f"plan: schedule {self.schedule} needs batches_per_pass, got {self.batches_per_pass}")

    def record(self) -> dict[str, Any]:
        """The plan as JSON values. float32 goes without saying, so that runs from before there was another keep their
        names."""
        values = asdict(self) | {"trains": str(self.trains), "schedule": str(self.schedule)}
        precision = str(values.pop("precision"))
        return values if self.precision is Precision.FLOAT32 else values | {"precision": precision}

    def decisive(self) -> dict[str, Any]:
        """Of the record what the weights depend on."""
        return {name: value for name, value in self.record().items() if name not in MEMORY_FIELDS}


MEMORY_FIELDS = ("accumulate", "most_frames", "checkpoint_layers")
"""Of a plan: how a step is computed, not what it gives. A run may go on with others on another machine."""


def rate_share(step: int, plan: PhasePlan) -> float:
    """Share of `plan.learning_rate` that step number `step` (from 0) runs at."""
    if plan.schedule is Schedule.UPSTREAM_SEMANTIC:
        return upstream_semantic_rate(step) / UPSTREAM_RATE
    if plan.schedule is Schedule.UPSTREAM_WAVE:
        return UPSTREAM_WAVE_DECAY ** (step // plan.batches_per_pass + 1)
    if step < plan.warm_up_steps:
        return (step + 1) / (plan.warm_up_steps + 1)
    passed = (step - plan.warm_up_steps) / max(1, plan.steps - 1 - plan.warm_up_steps)
    return plan.final_rate_share + (1 - plan.final_rate_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))


UPSTREAM_FIRST_RATE = 0.01
UPSTREAM_RATE = 0.002
UPSTREAM_WAVE_DECAY = 0.999875
UPSTREAM_ACCUMULATED = 4


def upstream_semantic_rate(step: int) -> float:
    """GPT's rate of optimiser step number `step` (from 0) over the whole training, whatever its settings say.

    The schedule is asked for the first time after the first step, which therefore still has the optimiser's own rate.
    A resumed run goes on at the constant one. (Upstream's `get_last_lr` is one call late: it names the rate of the step
    that has just been made.)
    """
    return UPSTREAM_FIRST_RATE if step == 0 else UPSTREAM_RATE


def upstream_intended_rate(
    step: int, *, first: float, peak: float, last: float, warm_up_steps: int, total_steps: int
) -> float:
    """The rate that GPT's settings describe and that is computed and thrown away: warm-up, then half a cosine."""
    if step < warm_up_steps:
        return first + (peak - first) * step / warm_up_steps
    passed = min(1.0, (step - warm_up_steps) / (total_steps - warm_up_steps))
    return last + (peak - last) * 0.5 * (1 + math.cos(math.pi * passed))


def upstream_wave_rates(
    learning_rate: float,
    epochs: int,
    *,
    decay: float = UPSTREAM_WAVE_DECAY,
    resumed_after: Collection[int] = (),
) -> list[float]:
    """SoVITS's rate in each of the epochs 1 to `epochs`, for the group that starts at `learning_rate`.

    The decay is applied as many times as the number of the first epoch before anything is trained, so that epoch 1 runs
    at `learning_rate * decay` already. A run that stopped after epoch E and went on finds its own, decayed rate in the
    checkpoint and decays it E + 1 times more: `resumed_after` lists such epochs.
    """
    rates, rate = [], learning_rate * decay
    for epoch in range(1, epochs + 1):
        rates.append(rate)
        rate *= decay
        for _ in range(epoch if epoch in resumed_after else 0):
            rate *= decay
    return rates


def upstream_steps_after(batch: int) -> bool:
    """Whether GPT's optimiser makes a step after batch number `batch` (from 0) of an epoch."""
    return batch > 0 and batch % UPSTREAM_ACCUMULATED == 0


def upstream_accumulation(batches: int, epochs: int) -> list[int]:
    """How many batches each of GPT's optimiser steps sums the gradients of, in epochs of `batches` batches.

    The first step of an epoch has one batch more than the others. What is left over at the end of an epoch is neither
    stepped on nor thrown away: the next epoch's first step has it, too. Sums, not means.
    """
    counts, waiting = [], 0
    for _ in range(epochs):
        for batch in range(batches):
            waiting += 1
            if upstream_steps_after(batch):
                counts.append(waiting)
                waiting = 0
    return counts
