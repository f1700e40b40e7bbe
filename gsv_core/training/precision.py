"""In which number format a step is computed, and the scaling of losses that half precision needs.

Weights, gradients, optimiser, spectrograms and losses are float32 in any case; what is multiplied is rounded
(Micikevicius et al. 2017, arXiv:1710.03740). bfloat16 has float32's range. float16 has not: small gradients would
become zero, so that the loss is multiplied by a scale before the backward pass, and gradients are divided by it
afterwards. The largest scale at which gradients stay finite is searched: halved after a step that overflowed, doubled
after many that did not.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor


class Precision(StrEnum):
    """What matrices and convolutions are multiplied in while training."""

    AUTO = "auto"
    """What the device is good at: float32 on a CPU, bfloat16 on a GPU that has it, float16 on an older one."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


_DTYPES = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT16: torch.float16}
_FIRST_SCALE = 2.0**16
_STEADY_STEPS = 2000
"""Steps without overflow before a larger scale is tried."""


def resolved(precision: Precision, device: torch.device) -> Precision:
    """`precision`, or what `auto` means on `device`."""
    if precision is not Precision.AUTO:
        return precision
    if device.type != "cuda":
        return Precision.FLOAT32
    # A GPU without units for it (V100, T4) computes bfloat16 all the same, and slowly. Ampere has them; torch's own
    # question is about the GPU in use, which need not be this one.
    return Precision.BFLOAT16 if torch.cuda.get_device_capability(device) >= (8, 0) else Precision.FLOAT16


def autocast(device: torch.device, precision: Precision = Precision.AUTO) -> AbstractContextManager[None]:
    """Inside the block `device` multiplies in `precision`."""
    dtype = _DTYPES.get(resolved(precision, device))
    if dtype is None:
        return nullcontext()
    # A rounded weight that was kept from a pass without gradients would give none in the next pass.
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)


class LossScale:
    """What the loss of one optimiser is multiplied by. Without float16 nothing, and none of its methods do anything.

    Powers of two: scaling rounds nothing.
    """

    def __init__(self, precision: Precision) -> None:
        self.searches = precision is Precision.FLOAT16
        self.value = _FIRST_SCALE if self.searches else 1.0
        self._steady = 0

    def up(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        return loss * self.value if self.searches else loss

    @torch.no_grad()
    def down(self, parameters: Iterable[Tensor]) -> None:
        """Gradients of scaled losses to gradients."""
        if self.searches and (gradients := [p.grad for p in parameters if p.grad is not None]):
            torch._foreach_mul_(gradients, 1 / self.value)

    def settle(self, *, finite: bool, loss: float) -> bool:
        """Go on searching after a step; whether a step without `finite` gradients was this scale's fault.

        It was not where the `loss` itself is not finite, which no scale mends, nor where there is no smaller scale.
        """
        if not self.searches:
            return False
        if finite:
            self._steady += 1
            if self._steady == _STEADY_STEPS:
                self.value, self._steady = self.value * 2, 0
            return False
        if not math.isfinite(loss) or self.value <= 1:
            return False
        self.value, self._steady = self.value / 2, 0
        return True

    def numbers(self, name: str = "loss_scale") -> dict[str, float]:
        """For the curve."""
        return {name: self.value} if self.searches else {}

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "steady": self._steady}

    def load_state(self, state: dict[str, Any]) -> None:
        self.value, self._steady = state["value"], state["steady"]
