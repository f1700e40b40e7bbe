"""What both trainers do around a step: parameter groups, rates, finite gradients, and what changed in the end."""

import copy
import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from gsv_core.training.schedules import PhasePlan, rate_share

TRAINER_VERSION = "1"
"""Goes up whenever the same plan would give other weights."""


def trainable_copy(network: nn.Module, prefixes: Sequence[str], device: torch.device) -> nn.Module:
    """A copy of `network` on `device` in which exactly the parameters under `prefixes` take gradients.

    Raises:
        ValueError: a prefix names nothing, so that the plan does not fit this network.
    """
    names = [name for name, _ in network.named_parameters()]
    for prefix in prefixes:
        if not any(under(name, [prefix]) for name in names):
            raise ValueError(f"nothing in the network is called {prefix}; the recipe does not fit this release")
    trained = copy.deepcopy(network).to(device)
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(under(name, prefixes))
    return trained


def under(name: str, prefixes: Iterable[str]) -> bool:
    """Whether the dotted `name` is one of `prefixes` or lies below one; the empty prefix holds everything."""
    return any(not prefix or name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def set_rates(optimiser: torch.optim.Optimizer, step: int, plan: PhasePlan) -> float:
    """Set the rate of step number `step` in every group, times the group's own `share`; returns the full rate."""
    rate = plan.learning_rate * rate_share(step, plan)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]
    return rate


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Norm over all gradients that exist."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 where the device computes in it; float32 elsewhere."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def changed_tensors(trained: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """Whole tensors of `trained` that differ from `base`'s, on the CPU."""
    before = base.state_dict()
    now = {name: tensor.detach().cpu() for name, tensor in trained.state_dict().items()}
    return {name: tensor.clone() for name, tensor in now.items() if not torch.equal(tensor, before[name].cpu())}


def identity_of(release: str, base_digest: str, voice: str, phase: str, plan: PhasePlan) -> dict[str, str]:
    """What a checkpoint must share with a run to be gone on from."""
    return {
        "release": str(release),
        "base_digest": base_digest,
        "voice": voice,
        "phase": phase,
        "plan": json.dumps(plan.record(), sort_keys=True),
        "trainer_version": TRAINER_VERSION,
    }


def weights_metadata(release: str, base_digest: str, phase: str, step: int) -> dict[str, str]:
    """What a file of saved weights says of itself: which base it changes, and how far it was trained."""
    return {
        "release": str(release),
        "base_digest": base_digest,
        "phase": phase,
        "step": str(step),
        "trainer_version": TRAINER_VERSION,
    }
