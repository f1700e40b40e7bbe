"""Several processes that train one network: each takes its part of a batch, and their gradients are added up.

A loss is a sum over a rank's own clips, divided by what the whole batch counts; so gradients add up to those of one
process over the whole batch, up to the order of summation, and every rank makes the same optimiser step on the same
weights. Sums are float32 for gradients, float64 for numbers, and the same for the same number of ranks.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")

_BUCKET_ELEMENTS = 8 << 20
"""32 MB of float32: one message per bucket, and no second copy of all gradients at once."""


class Reducer(Protocol):
    """What a trainer knows of the other ranks. Every rank makes the same calls in the same order."""

    @property
    def world(self) -> int:
        """How many ranks there are."""
        ...

    @property
    def rank(self) -> int:
        """Which one this is, from 0; rank 0 saves."""
        ...

    def reduce(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradient of each parameter by its sum over all ranks.

        A rank without a gradient counts as zero; where no rank has one, there is none afterwards.
        """
        ...

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each of `values` over all ranks."""
        ...


def part_of(items: Sequence[T], reducer: Reducer | None) -> list[T]:
    """The share of a batch that is this rank's; all of it where there is one process. May be empty.

    Items sorted by length are dealt out like cards, so that every rank gets long and short ones.
    """
    return list(items) if reducer is None else list(items[reducer.rank :: reducer.world])


class TorchReducer:
    """Sums through torch.distributed's default group, which has to be set up: gloo on CPUs, nccl on GPUs."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._world = torch.distributed.get_world_size()
        self._rank = torch.distributed.get_rank()

    @property
    def world(self) -> int:
        return self._world

    @property
    def rank(self) -> int:
        return self._rank

    def reduce(self, parameters: Iterable[Tensor]) -> None:
        listed = list(parameters)
        held = self.total([float(parameter.grad is not None) for parameter in listed])
        used = [parameter for parameter, ranks in zip(listed, held, strict=True) if ranks]
        for bucket in _buckets(used):
            flat = torch.cat([_gradient(parameter).reshape(-1).float() for parameter in bucket])
            torch.distributed.all_reduce(flat)
            start = 0
            for parameter in bucket:
                summed = flat[start : start + parameter.numel()].view_as(parameter)
                start += parameter.numel()
                if parameter.grad is None:
                    parameter.grad = summed.to(parameter.dtype, copy=True)
                else:
                    parameter.grad.copy_(summed)

    def total(self, values: Sequence[float]) -> list[float]:
        summed = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(summed)
        return [float(value) for value in summed.tolist()]


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """`parameters` in their order, cut where a bucket would grow beyond its bound."""
    buckets: list[list[Tensor]] = []
    elements = 0
    for parameter in parameters:
        if not buckets or elements + parameter.numel() > _BUCKET_ELEMENTS:
            buckets.append([])
            elements = 0
        buckets[-1].append(parameter)
        elements += parameter.numel()
    return buckets
