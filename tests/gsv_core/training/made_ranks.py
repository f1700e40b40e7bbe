"""A step as several processes would make it, in threads; and the gradients that a step was made with."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class ThreadReducer:
    """Sums over the threads of one group."""

    def __init__(self, rank: int, group: "Group") -> None:
        self.rank, self.world, self._group = rank, group.world, group

    def total(self, values: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self._group.exchange(self.rank, list(values)))]

    def reduce(self, parameters: Iterable[Tensor]) -> None:
        listed = list(parameters)
        all_gradients = self._group.exchange(self.rank, [None if p.grad is None else p.grad.clone() for p in listed])
        for parameter, gradients in zip(listed, zip(*all_gradients)):
            given = [gradient for gradient in gradients if gradient is not None]
            parameter.grad = torch.stack(given).sum(0) if given else None


class Group:
    def __init__(self, world: int) -> None:
        self.world = world
        self._barrier = threading.Barrier(world, timeout=60)
        self._slots: list[Any] = [None] * world

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._slots[rank] = value
        self._barrier.wait()
        everything = list(self._slots)
        self._barrier.wait()
        return everything


def in_ranks(world: int, work: Callable[[ThreadReducer], Any]) -> list[Any]:
    """What `work` gives on each rank."""
    group, results = Group(world), [None] * world
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadReducer(rank, group))
        except BaseException as error:  # noqa: BLE001 - shown by the thread that waits
            failures.append(error)
            group._barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def gradients_of(trainer: Any, batch: Any) -> tuple[dict[str, float], list[Tensor]]:
    """The numbers of a step, and the gradients at the moment of every optimiser's step, one behind the other."""
    seen: list[Tensor] = []
    names = [name for name in ("discriminator_optimiser", "generator_optimiser", "optimiser") if hasattr(trainer, name)]
    for name in names:
        optimiser = getattr(trainer, name)
        step = optimiser.step

        def recorded(step=step, optimiser=optimiser) -> None:
            for group in optimiser.param_groups:
                seen.extend(p.grad.clone() for p in group["params"] if p.grad is not None)
            step()

        optimiser.step = recorded
    return trainer.step(batch), seen


def assert_alike(ours: tuple[dict[str, float], list[Tensor]], others: tuple[dict[str, float], list[Tensor]]) -> None:
    """The same numbers and gradients but for the order of summation."""
    numbers, gradients = ours
    assert numbers.keys() == others[0].keys()
    for name, value in numbers.items():
        assert abs(value - others[0][name]) <= 2e-5 * max(1e-3, abs(value)), name
    assert len(gradients) == len(others[1])
    assert any(bool(gradient.any()) for gradient in gradients)
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    for gradient, other in zip(gradients, others[1], strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=2e-6 * scale)
