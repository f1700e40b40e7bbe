"""LoRA adapters of several voices over one frozen network, in one forward and one backward pass.

The rows of a batch belong to voices, those of a voice lie together. What is frozen is computed once for all rows; each
low-rank product (Hu et al. 2021, arXiv:2106.09685) and each part that a voice has of its own, for that voice's rows
alone. So no gradient of a voice meets another's, and what one voice breaks stays broken in its rows. Many adapters over
one base are trained so in NanoVoice (2024, arXiv:2409.15760) and served so in S-LoRA (Sheng et al. 2023,
arXiv:2311.03285). No tensor of the base is copied. Shapes: N rows, I inputs, O outputs, R rank.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from gsv_core.networks.lora import LoraLinear, LoraMatrix, plain_name


@dataclass(frozen=True, kw_only=True)
class Share:
    """What of a batch is `voice`'s: rows of a padded batch, or columns where a network works on the real ones alone."""

    voice: str
    rows: int
    columns: int = 0


class Factors(NamedTuple):
    """One adapter: what is added to a product is `scaling` times x A^T B^T."""

    down: Tensor
    """(R, I)"""
    up: Tensor
    """(O, R)"""
    scaling: float


class AdapterBank:
    """A network that computes the rows of several voices at once, each with its own adapters.

    `network` has the names and the frozen tensors of the base it was made of; call it as the base is called, after
    `seat` has said whose rows are whose.
    """

    def __init__(self, base: nn.Module, device: torch.device) -> None:
        held = next(base.parameters()).device
        self.network = _sharing(base) if held == device else copy.deepcopy(base).to(device)
        self._tensors = dict(chain(self.network.named_parameters(), self.network.named_buffers()))
        self._matrices: dict[str, _Matrix] = {}
        self._parts: dict[str, _OwnParts] = {}
        self._shares: tuple[Share, ...] = ()
        self._voices: set[str] = set()

    @property
    def voices(self) -> frozenset[str]:
        """Who has joined and not left."""
        return frozenset(self._voices)

    def join(self, voice: str, network: nn.Module) -> None:
        """Take what `network`, a copy of the base, trains as `voice`'s. Its frozen tensors become the bank's own.

        Raises:
            ValueError: the voice is there already, or adapts or trains other parts than those that are.
        """
        if voice in self._voices:
            raise ValueError(f"voice {voice} is in this bank already; a voice trains once at a time")
        factors, parts = dict(_factors_of(network)), dict(_trained_parts(network))
        known = self._matrices.keys() | self._parts.keys()
        if self._matrices and factors.keys() | parts.keys() != known:
            differing = sorted((factors.keys() | parts.keys()) ^ known)
            raise ValueError(
                f"voice {voice} trains other parts than the voices it would share a batch with ({differing[0]}, "
                f"{len(differing)} in all); give all of them the same plan, or train this one alone"
            )
        if not self._matrices:
            self._build(factors.keys(), parts.keys())
        for name, own in factors.items():
            self._matrices[name].factors[voice] = own
        for name, part in parts.items():
            self._parts[name].own[voice] = part
        _share_frozen(network, self._tensors)
        self._voices.add(voice)

    def leave(self, voice: str) -> None:
        """Forget what is `voice`'s."""
        self._voices.discard(voice)
        for matrix in self._matrices.values():
            matrix.factors.pop(voice, None)
        for part in self._parts.values():
            part.own.pop(voice, None)

    def seat(self, shares: Sequence[Share]) -> None:
        """Say whose rows are whose in the batches to come, in the order in which they lie."""
        strangers = sorted({share.voice for share in shares} - self._voices)
        assert not strangers, f"{strangers} never joined the bank"
        self._shares = tuple(shares)

    def _build(self, matrices: Sequence[str] | Any, parts: Sequence[str] | Any) -> None:
        for name in matrices:
            owner_name, _, leaf = name.rpartition(".")
            owner = self.network.get_submodule(owner_name)
            matrix = self._matrices[name] = _Matrix(getattr(owner, leaf), self._seated)
            delattr(owner, leaf)
            setattr(owner, leaf, matrix)
        for name in parts:
            owner_name, _, leaf = name.rpartition(".")
            part = self._parts[name] = _OwnParts(self._seated)
            setattr(self.network.get_submodule(owner_name), leaf, part)

    def _seated(self) -> tuple[Share, ...]:
        return self._shares


class _Matrix:
    """Stands where a frozen matrix (O, I) stood: a product with it is the sum of the matrix's and each voice's own."""

    def __init__(self, weight: Tensor, seated: Callable[[], tuple[Share, ...]]) -> None:
        self.weight = weight
        self.factors: dict[str, Factors] = {}
        self._seated = seated

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        _types: Sequence[type],
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is not functional.linear or named:
            return NotImplemented
        x, matrix, *bias = arguments
        return matrix.product(x, bias[0] if bias else None)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(.., I) -> (.., O), the first axis that of rows, or of columns where there are two axes."""
        shares = self._seated()
        counts = tuple(one.columns if x.ndim == 2 else one.rows * x.shape[1] for one in shares)
        own = [self.factors[share.voice] for share in shares]
        scaling = own[0].scaling
        assert all(one.scaling == scaling for one in own), "adapters that share a pass count alike"
        flat = x.reshape(-1, x.shape[-1])
        assert sum(counts) == len(flat), f"seats for {sum(counts)} rows, a batch of {len(flat)}"
        factors = [one.down for one in own] + [one.up for one in own]
        added: Tensor = _SumOfProducts.apply(flat, self.weight, bias, counts, scaling, *factors)
        return added if x.ndim == 2 else added.unflatten(0, x.shape[:-1])


class _SumOfProducts(torch.autograd.Function):
    """x W^T + b, and on the rows of each voice scaling x A^T B^T: (N, I) -> (N, O). No gradient for W and b.

    One step of the graph for all voices; nothing as large as W is ever formed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        counts: tuple[int, ...],
        scaling: float,
        *factors: Tensor,
    ) -> Tensor:
        kind = x.device.type
        ctx.counts, ctx.scaling, ctx.dtype = counts, scaling, factors[0].dtype
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            factors = tuple(factor.to(dtype) for factor in factors)
            out = functional.linear(x, weight, bias)
            add = _add_in_blocks if _prefers_blocks(x.device) else _add_by_voice
            inner = add(out, x, factors[: len(counts)], factors[len(counts) :], counts, scaling)
        ctx.save_for_backward(x, weight, inner, *factors)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, weight, inner, *factors = ctx.saved_tensors
        gradient = gradients[0].to(x.dtype)
        into = gradient @ weight if ctx.needs_input_grad[0] else None
        voices = len(ctx.counts)
        take = _gradients_in_blocks if _prefers_blocks(x.device) else _gradients_by_voice
        given = (factors[:voices], factors[voices:], ctx.counts, ctx.scaling)
        found = take(into, gradient, x, inner, *given)
        return into, None, None, None, None, *(one.to(ctx.dtype) for one in found)


def _prefers_blocks(device: torch.device) -> bool:
    """A kernel for all voices where launching one is dear; a CPU rather saves the copies."""
    return device.type != "cpu"


def _add_by_voice(
    out: Tensor,
    x: Tensor,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    counts: tuple[int, ...],
    scaling: float,
) -> Tensor:
    """Add to `out` (N, O) what each voice adds to its rows of `x` (N, I); the products x A^T, (N, R)."""
    inner = []
    for rows, added, down, up in zip(x.split(counts), out.split(counts), downs, ups, strict=True):
        inner.append(rows @ down.T)
        added.addmm_(inner[-1], up.T, alpha=scaling)
    return torch.cat(inner)


def _gradients_by_voice(
    into: Tensor | None,
    gradient: Tensor,
    x: Tensor,
    inner: Tensor,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    counts: tuple[int, ...],
    scaling: float,
) -> list[Tensor]:
    """The gradients of all A, then of all B; what flows into `x` is added to `into` (N, I)."""
    of_downs, of_ups = [], []
    split = (tensor.split(counts) for tensor in (gradient, x, inner))
    ends = torch.tensor(counts).cumsum(0).tolist()
    for above, rows, between, down, up, end in zip(*split, downs, ups, ends, strict=True):
        middle = scaling * (above @ up)
        of_downs.append(middle.T @ rows)
        of_ups.append(scaling * (above.T @ between))
        if into is not None:
            into[end - len(rows) : end].addmm_(middle, down)
    return [*of_downs, *of_ups]


def _add_in_blocks(
    out: Tensor,
    x: Tensor,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    counts: tuple[int, ...],
    scaling: float,
) -> Tensor:
    """`_add_by_voice` in one product for all voices, (K, M, I) by (K, I, R)."""
    blocks = _blocks(counts, x.device)
    inner = blocks.spread(x) @ torch.stack(list(downs)).mT
    out += blocks.gather(inner @ (scaling * torch.stack(list(ups)).mT))
    return blocks.gather(inner)


def _gradients_in_blocks(
    into: Tensor | None,
    gradient: Tensor,
    x: Tensor,
    inner: Tensor,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    counts: tuple[int, ...],
    scaling: float,
) -> list[Tensor]:
    """`_gradients_by_voice` in the same way."""
    blocks = _blocks(counts, x.device)
    above = blocks.spread(gradient)
    middle = scaling * (above @ torch.stack(list(ups)))
    if into is not None:
        into += blocks.gather(middle @ torch.stack(list(downs)))
    of_downs, of_ups = middle.mT @ blocks.spread(x), scaling * (above.mT @ blocks.spread(inner))
    return [*of_downs.unbind(), *of_ups.unbind()]


@dataclass(frozen=True)
class _Blocks:
    """Rows of K voices one behind the other, as a block per voice with zeros behind: (N, D) <-> (K, M, D)."""

    counts: tuple[int, ...]
    back: Tensor | None
    """(N,) int64 into K x M; None where all voices have as many rows, so that nothing needs to move"""

    def spread(self, x: Tensor) -> Tensor:
        if self.back is None:
            return x.unflatten(0, (len(self.counts), -1))
        return nn.utils.rnn.pad_sequence(list(x.split(self.counts)), batch_first=True)

    def gather(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        return x if self.back is None else x.index_select(0, self.back)


@lru_cache(maxsize=8)
def _blocks(counts: tuple[int, ...], device: torch.device) -> _Blocks:
    longest = max(counts)
    if min(counts) == longest:
        return _Blocks(counts, None)
    inside = torch.arange(longest) < torch.tensor(counts).unsqueeze(1)
    return _Blocks(counts, inside.flatten().nonzero()[:, 0].to(device))


class _OwnParts(nn.Module):
    """Stands where a part stood that every voice trains whole: each computes its own rows."""

    def __init__(self, seated: Callable[[], tuple[Share, ...]]) -> None:
        super().__init__()
        self.own: dict[str, nn.Module] = {}
        self._seated = seated

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tensors with the rows as their first axis."""
        shares = self._seated()
        split = zip(*(values.split([share.rows for share in shares]) for values in inputs), strict=True)
        return torch.cat([self.own[share.voice](*own) for share, own in zip(shares, split, strict=True)])


def _sharing(network: nn.Module) -> nn.Module:
    """A copy whose modules are its own and whose tensors are `network`'s."""
    tensors = chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def _factors_of(network: nn.Module) -> Iterator[tuple[str, Factors]]:
    """Name of each adapted matrix, and its adapter."""
    for name, module in network.named_modules():
        if isinstance(module, LoraLinear):
            yield f"{name}.weight", Factors(module.lora_A, module.lora_B, module.scaling)
        elif parametrize.is_parametrized(module):
            for leaf, steps in module.parametrizations.items():  # type: ignore[union-attr]  # a ModuleDict
                (step,) = steps
                assert isinstance(step, LoraMatrix), f"{name}.{leaf} is replaced by something that is no adapter"
                yield f"{name}.{leaf}", Factors(step.lora_A, step.lora_B, step.scaling)


def _trained_parts(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The largest parts that train as a whole, adapters aside.

    Raises:
        ValueError: a module trains some of its own tensors and not others.
    """
    for leaf, module in network.named_children():
        name = f"{prefix}{leaf}"
        takes = [parameter.requires_grad for parameter in module.parameters()]
        if isinstance(module, LoraLinear) or leaf == "parametrizations" or not any(takes):
            continue
        if all(takes):
            yield name, module
        elif any(own.requires_grad for own in module.parameters(recurse=False)):
            raise ValueError(f"{name} trains in part, which voices cannot do in one batch; train the voice alone")
        else:
            yield from _trained_parts(module, f"{name}.")


def _share_frozen(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` in the place of equal frozen ones of `network`, whose own memory is given back."""
    for prefix, module in network.named_modules():
        start = f"{prefix}." if prefix else ""
        for leaf, own in module._parameters.items():
            if own is not None and not own.requires_grad:
                module._parameters[leaf] = tensors[plain_name(start + leaf)]  # type: ignore[assignment]
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[leaf] = tensors[start + leaf]
