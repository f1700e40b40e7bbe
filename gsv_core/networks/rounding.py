"""What autocast does to a tensor's operations, asked for and switched off where rounding would do harm."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def multiplied_in(x: Tensor) -> torch.dtype:
    """The type that autocast multiplies `x` in; its own without autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if _can_cast(kind) and torch.is_autocast_enabled(kind) else x.dtype


def unrounded(x: Tensor) -> AbstractContextManager[None]:
    """Inside the block there is no autocast for the likes of `x`."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if _can_cast(kind) else nullcontext()


def finely(x: Tensor) -> AbstractContextManager[None]:
    """Inside the block there is no autocast to bfloat16 for the likes of `x`; one to float16 stays.

    bfloat16 has 8 bits for a number, float16 has 11, and so has TF32, in which a GPU convolves what is float32.
    """
    return unrounded(x) if multiplied_in(x) is torch.bfloat16 else nullcontext()


def _can_cast(kind: str) -> bool:
    # Memory is counted on tensors without data, of which autocast knows nothing.
    return torch.amp.is_autocast_available(kind)
