"""What all trainers do around a step: parts of a batch, rates, finite gradients, and what changed in the end."""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from gsv_core.networks.lora import plain_name
from gsv_core.training.batches import TrainingItem
from gsv_core.training.parallel import Reducer
from gsv_core.training.precision import Precision
from gsv_core.training.schedules import PhasePlan, rate_share

Batch = TypeVar("Batch")

TRAINER_VERSION = "3"
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


def check_items(
    items: Iterable[TrainingItem],
    release: str,
    *,
    phonemes: int,
    tokens: int | None = None,
    content_width: int | None = None,
    text_vector_width: int | None = None,
    speaker_vector_width: int | None = None,
) -> None:
    """Raise ValueError, naming the clip, where one was made for another release; None leaves a part unlooked at."""
    for item in items:
        vectors, speaker = item.text_vectors, item.speaker_vector
        wrong = None
        if int(item.phoneme_ids.max()) >= phonemes:
            wrong = f"has phoneme {int(item.phoneme_ids.max())} of {phonemes}"
        elif tokens is not None and int(item.tokens.max()) >= tokens:
            wrong = f"has token {int(item.tokens.max())} of {tokens}"
        elif content_width is not None and item.content.shape[1] != content_width:
            wrong = f"has content features {item.content.shape[1]} wide, not {content_width}"
        elif text_vector_width is not None and vectors is not None and vectors.shape[1] != text_vector_width:
            wrong = f"has text vectors {vectors.shape[1]} wide, not {text_vector_width}"
        elif speaker_vector_width is not None and speaker is None:
            wrong = "has no speaker vector"
        elif speaker_vector_width is not None and speaker is not None and len(speaker) != speaker_vector_width:
            wrong = f"has a speaker vector {len(speaker)} wide, not {speaker_vector_width}"
        if wrong is not None:
            raise ValueError(
                f"clip {item.clip_id} {wrong}: it was made for another release than {release}; prepare the corpus "
                f"again with --base {release}"
            )


def parts_of(batch: Batch | Sequence[Batch]) -> list[Batch]:
    """A step's batch as the parts it is computed in: those that were given, or the one."""
    return list(batch) if isinstance(batch, list | tuple) else [batch]  # type: ignore[list-item]


def total(values: Sequence[float], reducer: Reducer | None) -> list[float]:
    """The sum of each of `values` over all ranks; themselves where there is one process."""
    return list(values) if reducer is None else reducer.total(values)


def add_up(parameters: Iterable[Tensor], reducer: Reducer | None) -> None:
    """Add up the gradients of all ranks."""
    if reducer is not None:
        reducer.reduce(parameters)


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """What takes gradients, under its name in the state dict."""
    return {plain_name(name): parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def restore_parameters(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Put the saved values back.

    Raises:
        ValueError: the saved ones are others, or of another shape.
    """
    differing = sorted(
        name
        for name in parameters.keys() | saved.keys()
        if name not in saved or name not in parameters or parameters[name].shape != saved[name].shape
    )
    if differing:
        name = differing[0]
        held, needed = (tuple(table[name].shape) if name in table else "nothing" for table in (saved, parameters))
        raise ValueError(f"{name} is {held} there and {needed} here ({len(differing)} such tensors)")
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])


def changed_parameters(trained: Mapping[str, Tensor], base: nn.Module) -> dict[str, Tensor]:
    """Of trained parameters those that differ from `base`'s, and LoRA's factors that add something; on the CPU."""
    before = base.state_dict()
    now = {name: tensor.detach().cpu() for name, tensor in trained.items()}
    used = {name for name, tensor in now.items() if name.endswith(".lora_B") and bool(tensor.any())}
    used |= {name.removesuffix("B") + "A" for name in used}
    changed = {name for name in now.keys() & before.keys() if not torch.equal(now[name], before[name].cpu())}
    return {name: now[name].clone() for name in now if name in changed | used}


def identity_of(
    release: str, base_digest: str, voice: str, phase: str, plan: PhasePlan, precision: Precision
) -> dict[str, str]:
    """What a checkpoint must share with a run to be gone on from. `precision` is the plan's on this device."""
    return {
        "release": str(release),
        "base_digest": base_digest,
        "voice": voice,
        "phase": phase,
        "plan": json.dumps(replace(plan, precision=precision).decisive(), sort_keys=True),
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
