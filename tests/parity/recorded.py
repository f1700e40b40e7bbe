"""Recorded cases: tensors that went in, tensors that must come out, and how close.

A case is `NAME.safetensors` with `w/` weights, `in/` inputs, `out/` results and `mid/` outputs of single modules,
beside `NAME.json` that says how the network was built and how far each result may be off.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

GRADIENT = "gradient of "
"""How the names of comparisons of gradient norms begin."""
GRADIENT_TOLERANCE = 1e-3
"""Relative, of gradient norms."""
GRADIENT_NOISE = 1e-6
"""Norms below this share of the largest one are zero but for rounding (keys' biases in attention, for one): ours must
be as small, not equal."""


@dataclass(frozen=True)
class Comparison:
    """One tensor of ours against the recorded one.

    `error` is the largest absolute difference, infinite where the two cannot be compared; `relative` the same as a
    share of the largest recorded magnitude. `share` is what the worst element uses up of its tolerance, where
    tolerances differ from element to element and `tolerance` names only the largest.
    """

    name: str
    error: float
    tolerance: float
    relative: float = 0.0
    share: float | None = None
    note: str = ""
    left_out: bool = False
    """Could not be compared and need not be: outputs of single modules only."""

    @property
    def used(self) -> float:
        """Share of the tolerance that is used up; above 1 is wrong."""
        if self.share is not None:
            return self.share
        if self.tolerance > 0:
            return self.error / self.tolerance
        return 0.0 if self.error == 0 else float("inf")

    @property
    def agrees(self) -> bool:
        return self.left_out or self.used <= 1


@dataclass(frozen=True)
class Tolerance:
    """|ours - recorded| <= absolute + relative * |recorded| + of_largest * max |recorded|."""

    absolute: float = 0.0
    relative: float = 0.0
    of_largest: float = 0.0

    @classmethod
    def written(cls, text: str) -> "Tolerance | None":
        """What a sentence such as `rtol 1e-5, atol 1e-8`, `relative 1e-6` or `exact` says, None if no such thing."""
        number = r"\s*[=:]?\s*([0-9][0-9.]*(?:[eE][-+]?[0-9]+)?)"
        absolute = re.search(r"\b(?:atol|absolute)" + number, text)
        relative = re.search(r"\b(?:rtol|relative)" + number, text)
        of_largest = re.search(r"\+" + number + r"\s*x?\s*max", text)
        if not absolute and not relative:
            return cls() if re.search(r"\bexact\b", text) else None
        return cls(
            float(absolute[1]) if absolute else 0.0,
            float(relative[1]) if relative else 0.0,
            float(of_largest[1]) if of_largest else 0.0,
        )


def count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers stand where `pattern` has its group: layers of a network, from its keys."""
    return len({found[1] for name in names if (found := re.match(pattern, name))})


def difference(name: str, ours: Tensor, recorded: Tensor, allowed: Tolerance) -> Comparison:
    """`ours` against `recorded`; whole numbers must be equal, and `error` counts those that are not."""
    if ours.shape != recorded.shape:
        note = f"shape {tuple(ours.shape)}, recorded {tuple(recorded.shape)}"
        return Comparison(name, float("inf"), 0.0, relative=float("inf"), note=note)
    if not recorded.is_floating_point():
        return Comparison(name, float((ours.long() != recorded.long()).sum()), 0.0)
    if not recorded.numel():
        return Comparison(name, 0.0, 0.0)
    expected = recorded.double()
    errors = (ours.detach().double() - expected).abs()
    if bool(errors.isnan().any()):
        return Comparison(name, float("inf"), 0.0, relative=float("inf"), note="not a number")
    largest = expected.abs().max().item()
    error = errors.max().item()
    relative = error / largest if largest else error
    bounds = allowed.absolute + allowed.relative * expected.abs() + allowed.of_largest * largest
    if not allowed.relative:
        return Comparison(name, error, bounds.max().item(), relative=relative)
    # 0 of 0 is agreement; anything of 0 is not.
    shares = torch.where(errors == 0, 0.0, errors / bounds)
    return Comparison(name, error, bounds.max().item(), relative=relative, share=shares.max().item())


@dataclass(frozen=True)
class RecordedCase:
    """One case. Compare through `compare`, so that a result nobody compared can be found out."""

    path: Path
    """Without extension."""
    dtype: torch.dtype | None = None
    """Of everything that is no whole number; None as recorded."""

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
        """Stored ones, and those that are made anew from seeds: keys without a known prefix are weights."""
        stored = load_file(self.path.with_name(self.name + ".safetensors"))
        recipes = self.meta.get("procedural_weights", {})
        made = {key if "/" in key else f"w/{key}": procedural(recipe) for key, recipe in recipes.items()}
        return stored | made

    def in_double_precision(self) -> "RecordedCase":
        """The same case with everything in float64."""
        return replace(self, dtype=torch.float64)

    @cached_property
    def gradients_compared(self) -> set[str]:
        """The scalars whose gradient norms have been compared."""
        return set()

    @cached_property
    def _heard(self) -> dict[str, list[Tensor]]:
        """Per `mid/` name what the watched module gave, one tensor per call."""
        return {}

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {
            key[len(prefix) + 1 :]: self._cast(value)
            for key, value in self._tensors.items()
            if key.startswith(prefix + "/")
        }

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if self.dtype is not None and value.is_floating_point() else value

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.group("in")

    @property
    def results(self) -> dict[str, Tensor]:
        return self.group("out")

    @property
    def middles(self) -> dict[str, Tensor]:
        return self.group("mid")

    def weights(self) -> dict[str, Tensor]:
        """The state dict."""
        return self.group("w")

    def compare(self, name: str, ours: Tensor, *, tolerance: float | None = None) -> Comparison:
        """`ours` against the recorded result `name`, within what the case allows unless `tolerance` is given."""
        recorded = self.results[name]
        allowed = self.allowed(name) if tolerance is None else Tolerance(absolute=tolerance)
        return difference(name, ours, recorded, allowed)

    def allowed(self, name: str) -> Tolerance:
        """How far the result `name` may be off: its own measured tolerance or the case's sentence, the narrower one.

        A case that has neither gets the floor of the measured ones: 5e-6 of the largest magnitude, but not below 1e-6.
        """
        measured = self.meta.get("f32_vs_f64", {}).get(name, {}).get("suggested_atol")
        text = str(self.meta.get("tolerance", ""))
        written = None if "f32_vs_f64" in text else Tolerance.written(text)
        if written is not None and (measured is None or written.relative or written.absolute <= measured):
            return written
        if measured is not None:
            return Tolerance(absolute=measured)
        largest = self.results[name].abs().max().item() if self.results[name].numel() else 0.0
        return Tolerance(absolute=max(1e-6, 5e-6 * largest))

    def compare_gradients(self, scalar: str, network: nn.Module) -> Iterator[Comparison]:
        """Gradient norms of `network` after the backward pass of what the case calls `scalar`."""
        recorded: Mapping[str, float | None] = self.meta["grad_norms"][scalar]
        self.gradients_compared.add(scalar)
        noise = GRADIENT_NOISE * max((norm for norm in recorded.values() if norm is not None), default=0.0)
        ours = dict(network.named_parameters())
        for name in sorted(recorded.keys() | ours.keys()):
            label = f"{GRADIENT}{scalar}: {name}"
            if name not in ours or name not in recorded:
                missing = "ours has no such parameter" if name not in ours else "nothing recorded"
                yield Comparison(label, float("inf"), 0.0, relative=float("inf"), note=missing)
                continue
            norm, gradient = recorded[name], ours[name].grad
            if norm is None or gradient is None:
                neither = norm is None and gradient is None
                note = "none, as recorded" if neither else "a gradient on one side only"
                yield Comparison(label, 0.0 if neither else float("inf"), 0.0, note=note)
            elif norm <= noise:
                yield Comparison(label, gradient.double().norm().item(), noise, note="zero but for rounding")
            else:
                error = abs(gradient.double().norm().item() - norm)
                yield Comparison(label, error, GRADIENT_TOLERANCE * norm, relative=error / norm)

    def watch(self, network: nn.Module, inputs: Mapping[str, str] | None = None) -> None:
        """Remember from now on what the modules of `network` that are named under `mid/` give.

        The name of a middle is the path of a module, perhaps after the name of a phase (`train.`, `dec.`, `encp.`).
        `inputs` names those that are the first input of a module instead: where ours computes the same value without
        calling a module of that name.
        """
        modules = dict(network.named_modules())
        for name in self.middles:
            taken = (inputs or {}).get(name)
            if taken is not None:
                modules[taken].register_forward_pre_hook(_keep_input(self._heard.setdefault(name, [])))
                continue
            parts = name.split(".")
            paths = (".".join(parts[start:]) for start in range(len(parts)))
            path = next((path for path in paths if path in modules), None)
            if path is not None:
                modules[path].register_forward_hook(_keep_output(self._heard.setdefault(name, [])))

    def heard(self, name: str, value: Tensor) -> None:
        """`value` is what the case calls `mid/name`."""
        self._heard.setdefault(name, []).append(value.detach())

    def compare_middles(self) -> Iterator[Comparison]:
        """Every `mid/` tensor against the closest call of its module; what no module of ours gives is left out.

        A module may run several times in one case (several speeds, several references), and the record does not say
        which run it is of.
        """
        written = re.search(r"\(mid/\):?(.*?)(?:\. |$)", str(self.meta.get("tolerance", "")))
        allowed = (Tolerance.written(written[1]) if written else None) or Tolerance(absolute=1e-5, of_largest=2e-5)
        for name, recorded in self.middles.items():
            label = f"mid/{name}"
            candidates = [value for value in self._heard.get(name, []) if value.shape == recorded.shape]
            if candidates:
                found = (difference(label, value, recorded, allowed) for value in candidates)
                yield min(found, key=lambda comparison: comparison.used)
            else:
                shapes = sorted({tuple(value.shape) for value in self._heard.get(name, [])})
                note = (
                    f"ours has {shapes}, recorded {tuple(recorded.shape)}" if shapes else "no module of ours gives it"
                )
                yield Comparison(label, 0.0, 0.0, note=note, left_out=True)


def _keep_output(kept: list[Tensor]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        values = output if isinstance(output, tuple | list) else [output]
        kept.extend(value.detach().clone() for value in values if isinstance(value, Tensor))

    return hook


def _keep_input(kept: list[Tensor]) -> Any:
    def hook(_module: nn.Module, inputs: Any) -> None:
        kept.append(inputs[0].detach().clone())

    return hook


def procedural(recipe: Mapping[str, Any]) -> Tensor:
    """Uniform float32 numbers of a seed string: PCG64 seeded by its digest, the top 24 bits of each draw."""
    seed = int.from_bytes(hashlib.sha256(recipe["seed_string"].encode()).digest()[:8], "little")
    draws = np.atleast_1d(np.random.PCG64(seed).random_raw(int(np.prod(recipe["shape"]))))
    unit = (draws >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    low, high = recipe["lo"], recipe["hi"]
    # The width of the range is rounded once, from double precision.
    values = (unit * np.float32(high - low) + np.float32(low)).astype(np.float32)
    if recipe.get("sha256") not in (None, hashlib.sha256(values.tobytes()).hexdigest()):
        raise ValueError(f"the numbers made from {recipe['seed_string']!r} are not the recorded ones")
    return torch.from_numpy(values.reshape(recipe["shape"]))
