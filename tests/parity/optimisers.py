"""Upstream's optimiser and learning rates on recorded trajectories."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gsv_core.training.scaled_adam import ScaledAdam
from gsv_core.training.schedules import UPSTREAM_WAVE_DECAY, upstream_semantic_rate, upstream_wave_rates
from tests.parity.recorded import Comparison, RecordedCase

OURS = {
    "clipping_update_period": "clipping_period",
    "scalar_lr_scale": "scalar_rate",
    "param_min_rms": "smallest_rms",
    "param_max_rms": "largest_rms",
    "scalar_max": "largest_scalar",
    "size_update_period": "size_period",
}
"""Upstream's names of what we call otherwise."""


def scaled_adam(case: RecordedCase) -> Iterator[Comparison]:
    """Every run of `constructor`: parameters after each step under the given gradients, and the rates in force."""
    names = case.meta["parameter_order"]
    for run, settings in case.constructor.items():
        parameters = {name: nn.Parameter(case.inputs[f"init_{name}"].clone()) for name in names}
        optimiser = ScaledAdam(parameters.values(), **_settings(settings))
        steps = len(case.inputs[f"grads_{names[0]}"])
        rates, trajectories = [], {name: [] for name in names}
        for step in range(steps):
            for name, parameter in parameters.items():
                parameter.grad = case.inputs[f"grads_{name}"][step].clone()
            for group in optimiser.param_groups:
                if "schedule" in run:
                    group["lr"] = upstream_semantic_rate(step)
                rates.append(group["lr"])
            optimiser.step()
            for name, parameter in parameters.items():
                trajectories[name].append(parameter.detach().clone())
        for name, values in trajectories.items():
            yield case.compare(f"{run}.{name}", torch.stack(values))
        if f"{run}.lr_used" in case.results:
            yield case.compare(f"{run}.lr_used", torch.tensor(rates, dtype=torch.float64))


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {OURS.get(name, name): tuple(value) if name == "betas" else value for name, value in settings.items()}


def learning_rates(case: RecordedCase) -> Iterator[Comparison]:
    """GPT's schedule does not depend on its settings; SoVITS's is counted in epochs."""
    for result, recorded in case.results.items():
        count = len(recorded)
        if epochs := re.fullmatch(r"s2_lr_epoch_(\d+)_to_(\d+)", result):
            first, last = int(epochs[1]), int(epochs[2])
            settings = next((entry for entry in case.constructor.values() if "lr_decay" in entry), {})
            decay, rate = settings.get("lr_decay", UPSTREAM_WAVE_DECAY), settings.get("learning_rate", 1e-4)
            rates = upstream_wave_rates(rate, last, decay=decay)[first - 1 :]
        elif result.endswith(".returned"):
            rates = [upstream_semantic_rate(step + 1) for step in range(count)]
        elif result.endswith((".lr_before_step", ".get_last_lr")):
            # `get_last_lr` is asked after the step, and says what that step ran at.
            rates = [upstream_semantic_rate(step) for step in range(count)]
        else:
            continue
        yield case.compare(result, torch.tensor(rates, dtype=torch.float64))
