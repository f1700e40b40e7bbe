"""What one phase of a training does: how many steps, on which weights, at which rate.

The rate rises linearly during the warm-up and then falls along half a cosine (Loshchilov and Hutter 2016,
arXiv:1608.03983) to a share of its peak.
"""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Trains(StrEnum):
    """Which weights of a network a phase changes. The trainers list the modules behind each name."""

    EVERYTHING = "everything"
    UPPER_LAYERS = "upper_layers"
    ACOUSTIC_SIDE = "acoustic_side"
    PROJECTIONS = "projections"
    NOTHING = "nothing"


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One phase, GPT or SoVITS, of one voice. `steps` counts optimiser steps; 0 leaves the base as it is."""

    steps: int
    batch_size: int
    learning_rate: float
    trains: Trains = Trains.EVERYTHING
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
    text_rate_share: float = 0.4
    """SoVITS: rate of the text side as a share of the rest's."""
    most_skipped: int = 10
    """Steps without a finite gradient before the run is given up."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "save_every", "evaluate_every", "longest_frames", "most_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"plan: {name} must be at least 1, got {getattr(self, name)}")
        if self.steps < 0 or self.warm_up_steps < 0:
            raise ValueError(f"plan: steps and warm_up_steps count from 0, got {self.steps} and {self.warm_up_steps}")
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

    def record(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self) | {"trains": str(self.trains)}


def rate_share(step: int, plan: PhasePlan) -> float:
    """Share of `plan.learning_rate` that step number `step` (from 0) runs at."""
    if step < plan.warm_up_steps:
        return (step + 1) / (plan.warm_up_steps + 1)
    passed = (step - plan.warm_up_steps) / max(1, plan.steps - 1 - plan.warm_up_steps)
    return plan.final_rate_share + (1 - plan.final_rate_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))
