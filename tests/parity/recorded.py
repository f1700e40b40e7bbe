"""Recorded cases: tensors that went in, tensors that must come out, and how close.

A case is `NAME.safetensors` with `w/` weights, `in/` inputs and `out/` results, beside `NAME.json` that says how the
network was built and how far each result may be off.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

GRADIENT_TOLERANCE = 1e-3
"""Relative, of gradient norms."""


@dataclass(frozen=True)
class Comparison:
    """One number of ours against the recorded one. `error` is infinite where the two cannot be compared."""

    name: str
    error: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class RecordedCase:
    """One case. Compare through `result`, so that a result nobody compared can be found out."""

    path: Path
    """Without extension."""

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads(self.path.with_name(self.name + ".json").read_text("utf-8"))

    @property
    def constructor(self) -> dict[str, Any]:
        return self.meta["constructor"]

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return load_file(self.path.with_name(self.name + ".safetensors"))

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) + 1 :]: value for key, value in self._tensors.items() if key.startswith(prefix + "/")}

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.group("in")

    @property
    def results(self) -> dict[str, Tensor]:
        return self.group("out")

    def weights(self) -> dict[str, Tensor]:
        """The state dict, the large tensors made anew from their seeds."""
        recipes = self.meta.get("procedural_weights", {})
        return self.group("w") | {key.removeprefix("w/"): _procedural(recipe) for key, recipe in recipes.items()}

    def compare(self, name: str, ours: Tensor, *, tolerance: float | None = None) -> Comparison:
        """`ours` against the recorded result `name`: largest absolute difference; integers must be equal."""
        recorded = self.results[name]
        if tolerance is None:
            measured = self.meta.get("f32_vs_f64", {}).get(name, {})
            tolerance = measured.get("suggested_atol", 1e-6 * max(1.0, recorded.abs().max().item()))
        if ours.shape != recorded.shape:
            return Comparison(name, float("inf"), tolerance)
        if not recorded.is_floating_point():
            return Comparison(name, float((ours.long() != recorded.long()).sum()), 0.0)
        error = (ours.detach().double() - recorded.double()).abs().max().item()
        return Comparison(name, error if error == error else float("inf"), tolerance)

    def compare_gradients(self, scalar: str, network: nn.Module) -> Iterator[Comparison]:
        """Gradient norms of `network` after the backward pass of what the case calls `scalar`."""
        recorded: Mapping[str, float | None] = self.meta["grad_norms"][scalar]
        # Some gradients are zero but for rounding (keys' biases in attention), so the largest one sets a floor.
        floor = 1e-6 * max(norm for norm in recorded.values() if norm is not None)
        for name, parameter in network.named_parameters():
            norm = recorded[name]
            if norm is None or parameter.grad is None:
                neither = norm is None and parameter.grad is None
                yield Comparison(f"gradient {name}", 0.0 if neither else float("inf"), 0.0)
            else:
                error = abs(parameter.grad.norm().item() - norm)
                yield Comparison(f"gradient {name}", error, GRADIENT_TOLERANCE * norm + floor)


def _procedural(recipe: Mapping[str, Any]) -> Tensor:
    """Uniform float32 numbers of a seed string: PCG64 seeded by its digest, the top 24 bits of each draw."""
    seed = int.from_bytes(hashlib.sha256(recipe["seed_string"].encode()).digest()[:8], "little")
    draws = np.random.PCG64(seed).random_raw(int(np.prod(recipe["shape"])))
    unit = (draws >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    low, high = recipe["lo"], recipe["hi"]
    values = (unit * np.float32(np.float32(high) - np.float32(low)) + np.float32(low)).astype(np.float32)
    if hashlib.sha256(values.tobytes()).hexdigest() != recipe["sha256"]:
        raise ValueError(f"the numbers made from {recipe['seed_string']!r} are not the recorded ones")
    return torch.from_numpy(values.reshape(recipe["shape"]))
