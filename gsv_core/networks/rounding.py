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


def _can_cast(kind: str) -> bool:
    # Memory is counted on tensors without data, of which autocast knows nothing.
    return torch.amp.is_autocast_available(kind)
