"""ScaledAdam: Adam whose steps are in proportion to the size of what they change (upstream's optimiser of GPT).

From Zipformer (Yao et al. 2023, arXiv:2310.11230). A tensor moves by its rate times its own root mean square, so that
large and small tensors change at the same relative speed, and its size itself is learned as if it were one more
parameter, in the logarithm. What is unusual, and what weights trained with it depend on:

- momentum is kept of changes to the parameters (`delta`), not of gradients, and its start from zero is not corrected;
- the root mean square is measured anew only where the size is learned, at the end of every `size_period` steps; below
  `smallest_rms` a tensor is not made smaller, above `largest_rms` it is made smaller whatever its gradient says;
- parameters of one element have no size: plain Adam at `scalar_rate` times the rate, cut to +-`largest_scalar`;
- clipping compares the norm of all gradients, each times its tensor's root mean square, with `clipping_scale` times
  the median of the last `clipping_period` ones. There is no bound before the first period is over, and it acts on the
  learning of sizes only: Adam divides by the gradient's own magnitude, so the direction has no use for it.

A parameter without a gradient counts as one whose gradient is zero. The work of a step is batched over all tensors.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class ScaledAdam(torch.optim.Optimizer):
    """Everything a step needs later is in `state_dict`: going on from a copy gives the same numbers."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 0.03,
        betas: tuple[float, float] = (0.9, 0.98),
        clipping_scale: float | None = None,
        clipping_period: int = 100,
        scalar_rate: float = 0.1,
        eps: float = 1e-8,
        smallest_rms: float = 1e-5,
        largest_rms: float = 3.0,
        largest_scalar: float = 10.0,
        size_period: int = 4,
    ) -> None:
        if not lr > 0 or not 0 <= betas[0] < 1 or not 0 <= betas[1] < 1:
            raise ValueError(f"scaled adam: need a positive rate and betas in [0, 1), got {lr} and {betas}")
        if size_period < 1 or clipping_period < 1:
            raise ValueError(f"scaled adam: periods count from 1 step, got {size_period} and {clipping_period}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "clipping_scale": clipping_scale,
            "clipping_period": clipping_period,
            "scalar_rate": scalar_rate,
            "eps": eps,
            "smallest_rms": smallest_rms,
            "largest_rms": largest_rms,
            "largest_scalar": largest_scalar,
            "size_period": size_period,
            "step": 0,
            "recent_norms": None,
            "longest_norm": None,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        tensors = [parameter for parameter in group["params"] if parameter.numel() > 1]
        scalars = [parameter for parameter in group["params"] if parameter.numel() == 1]
        if group["step"] == 0:
            self._start(group, tensors, scalars)
        shrinking = self._clipping(group, tensors, scalars)
        if tensors:
            self._step_tensors(group, tensors, shrinking)
        if scalars:
            self._step_scalars(group, scalars)
        group["step"] += 1

    def _start(self, group: dict[str, Any], tensors: list[Tensor], scalars: list[Tensor]) -> None:
        for parameter in tensors + scalars:
            self.state[parameter]["delta"] = torch.zeros_like(parameter)
            self.state[parameter]["second_moment"] = torch.zeros_like(parameter)
        if tensors:
            # One number per tensor, of the whole group together; the first tensor's state keeps them.
            sizes = self.state[tensors[0]]
            sizes["rms"] = _root_mean_squares(tensors)
            sizes["size_second_moment"] = torch.zeros_like(sizes["rms"])
            sizes["size_gradients"] = sizes["rms"].new_zeros(group["size_period"], len(tensors))

    def _clipping(self, group: dict[str, Any], tensors: list[Tensor], scalars: list[Tensor]) -> float:
        """The factor, at most 1, for the gradients of sizes."""
        step, period = group["step"], group["clipping_period"]
        # The first norm is not counted.
        if group["clipping_scale"] is None or step == 0:
            return 1.0
        norms = [torch.stack(torch._foreach_norm(_gradients(scalars)))] if scalars else []
        if tensors:
            norms.append(torch.stack(torch._foreach_norm(_gradients(tensors))) * self.state[tensors[0]]["rms"])
        norm = torch.cat(norms).norm().item()
        if group["recent_norms"] is None:
            group["recent_norms"] = [0.0] * period
        group["recent_norms"][step % period] = norm
        if step % period == 0:
            # The median where the period is a multiple of four, else a little below it.
            group["longest_norm"] = group["clipping_scale"] * sorted(group["recent_norms"])[period // 4 * 2]
        if group["longest_norm"] is None:
            return 1.0
        return min(1.0, group["longest_norm"] / (norm + 1e-20))

    def _step_tensors(self, group: dict[str, Any], tensors: list[Tensor], shrinking: float) -> None:
        (beta1, beta2), step, period = group["betas"], group["step"], group["size_period"]
        gradients, sizes = _gradients(tensors), self.state[tensors[0]]
        deltas = [self.state[parameter]["delta"] for parameter in tensors]
        moments = [self.state[parameter]["second_moment"] for parameter in tensors]
        torch._foreach_mul_(deltas, beta1)
        products = [torch.dot(p.flatten(), gradient.flatten()) for p, gradient in zip(tensors, gradients, strict=True)]
        sizes["size_gradients"][step % period] = torch.stack(products) * shrinking
        if step % period == period - 1:
            sizes["rms"] = _root_mean_squares(tensors)
            if step > 0:
                growth = torch._foreach_mul(tensors, list(self._size_steps(group, sizes).unbind()))
                torch._foreach_add_(deltas, growth, alpha=1 - beta1)
        torch._foreach_mul_(moments, beta2)
        torch._foreach_addcmul_(moments, gradients, gradients, value=1 - beta2)
        started = 1 - beta2 ** (step + 1)
        steps = torch._foreach_sqrt(torch._foreach_div(moments, started) if started < 0.99 else moments)
        torch._foreach_add_(steps, group["eps"])
        steps = torch._foreach_div(gradients, steps)
        torch._foreach_mul_(steps, list(sizes["rms"].clamp(min=group["smallest_rms"]).unbind()))
        torch._foreach_add_(deltas, steps, alpha=-group["lr"] * (1 - beta1))
        torch._foreach_add_(tensors, deltas)

    @staticmethod
    def _size_steps(group: dict[str, Any], sizes: dict[str, Tensor]) -> Tensor:
        """By which share of itself each tensor should grow, from the gradients of a whole period."""
        period, rms = group["size_period"], sizes["rms"]
        rate, beta2 = group["lr"] * group["scalar_rate"], group["betas"][1] ** period
        gradients = sizes["size_gradients"]
        sizes["size_second_moment"].mul_(beta2).add_(gradients.square().mean(dim=0), alpha=1 - beta2)
        started = 1 - beta2 ** ((group["step"] + 1) // period)
        steps = -rate * started**0.5 * gradients.sum(dim=0) / (sizes["size_second_moment"].sqrt() + group["eps"])
        steps.masked_fill_(rms < group["smallest_rms"], 0.0)
        return steps.masked_fill_(rms > group["largest_rms"], -rate * period)

    def _step_scalars(self, group: dict[str, Any], scalars: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        gradients = _gradients(scalars)
        deltas = [self.state[parameter]["delta"] for parameter in scalars]
        moments = [self.state[parameter]["second_moment"] for parameter in scalars]
        torch._foreach_mul_(deltas, beta1)
        torch._foreach_mul_(moments, beta2)
        torch._foreach_addcmul_(moments, gradients, gradients, value=1 - beta2)
        steps = torch._foreach_sqrt(torch._foreach_div(moments, 1 - beta2 ** (group["step"] + 1)))
        torch._foreach_add_(steps, group["eps"])
        steps = torch._foreach_div(gradients, steps)
        torch._foreach_add_(deltas, steps, alpha=-group["lr"] * group["scalar_rate"] * (1 - beta1))
        # Cut before the step: the bound may be passed by one step.
        torch._foreach_clamp_max_(scalars, group["largest_scalar"])
        torch._foreach_clamp_min_(scalars, -group["largest_scalar"])
        torch._foreach_add_(scalars, deltas)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def _root_mean_squares(tensors: list[Tensor]) -> Tensor:
    """(number of tensors,)."""
    norms = torch.stack(torch._foreach_norm(tensors))
    return norms / torch.tensor([tensor.numel() for tensor in tensors], dtype=norms.dtype, device=norms.device).sqrt()
