"""LoRA adapters of several voices over one frozen network, in one forward and one backward pass.

The rows of a batch belong to voices, those of a voice lie together. What is frozen is computed once for all rows; each
low-rank product (Hu et al. 2021, arXiv:2106.09685) and each part that a voice has of its own, for that voice's rows
alone. So no gradient of a voice meets another's, and what one voice breaks stays broken in its rows. Many adapters over
one base are trained so in NanoVoice (2024, arXiv:2409.15760) and served so in S-LoRA (Sheng et al. 2023,
arXiv:2311.03285). No tensor of the base is copied. Shapes: N rows, I inputs, O outputs, R rank.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class Seats:
    """Who takes part in a pass, with the adapters side by side."""

    shares: tuple[Share, ...]
    """In the order in which they lie in a batch."""
    adapters: tuple[Factors, ...]
    """Per adapted matrix those of all, one behind the other: (K, R, I) and (K, O, R)."""


class AdapterBank:
    """A network that computes the rows of several voices at once, each with its own adapters.

    `network` has the names and the frozen tensors of the base it was made of; call it as the base is called, with
    `seats` that say whose rows are whose, and take `gradients` of what comes out.
    """

    def __init__(self, base: nn.Module, device: torch.device) -> None:
        held = next(base.parameters()).device
        self.network = _sharing(base) if held == device else copy.deepcopy(base).to(device)
        self._tensors = dict(chain(self.network.named_parameters(), self.network.named_buffers()))
        self._matrices: dict[str, _Matrix] = {}
        self._parts: dict[str, _OwnParts] = {}
        self._vectors: dict[str, Tensor] = {}
        self.seats = Seats((), ())
        """Whose rows are whose in the batches to come."""

    @property
    def voices(self) -> frozenset[str]:
        """Who has joined and not left."""
        return frozenset(self._vectors)

    def join(self, voice: str, network: nn.Module) -> Tensor:
        """Take what `network`, a copy of the base, trains as `voice`'s. Its frozen tensors become the bank's own.

        Returns all that the voice trains as one vector, whose order is that of `gradients`. The network's parameters
        are views of it from now on.

        Raises:
            ValueError: the voice is there already, or adapts or trains other parts than those that are.
        """
        if voice in self._vectors:
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
        self._vectors[voice] = _one_vector([*self._adapters_of(voice), *self._parameters_of(voice)])
        return self._vectors[voice]

    def leave(self, voice: str) -> None:
        """Forget what is `voice`'s."""
        self._vectors.pop(voice, None)
        for matrix in self._matrices.values():
            matrix.factors.pop(voice, None)
        for part in self._parts.values():
            part.own.pop(voice, None)

    def seats_of(self, shares: Sequence[Share]) -> Seats:
        """Seats for these voices, of one rank: their adapters are copied as they are now."""
        strangers = sorted({share.voice for share in shares} - self._vectors.keys())
        assert not strangers, f"{strangers} never joined the bank"
        shapes = [tensor.shape for tensor in self._adapters_of(shares[0].voice)]
        sizes = [shape.numel() for shape in shapes]
        side_by_side = torch.stack([self._vectors[share.voice][: sum(sizes)] for share in shares])
        stacks = [
            own.unflatten(1, shape).requires_grad_()
            for own, shape in zip(side_by_side.split(sizes, dim=1), shapes, strict=True)
        ]
        adapters = []
        for matrix, down, up in zip(self._matrices.values(), stacks[::2], stacks[1::2], strict=True):
            scalings = {matrix.factors[share.voice].scaling for share in shares}
            assert len(scalings) == 1, "adapters that share a pass count alike"
            adapters.append(Factors(down, up, *scalings))
        return Seats(tuple(shares), tuple(adapters))

    def gradients(self, loss: Tensor) -> Tensor:
        """The gradient of `loss`, a sum of what each voice has of its own, for what each trains: K vectors, (K, T).

        In the order of `seats`; 0 where nothing depends on a parameter.
        """
        stacks = [one for factors in self.seats.adapters for one in (factors.down, factors.up)]
        own = [parameter for share in self.seats.shares for parameter in self._parameters_of(share.voice)]
        found = torch.autograd.grad(loss, [*stacks, *own], materialize_grads=True)
        rows = [gradient.flatten(1) for gradient in found[: len(stacks)]]
        if own:
            whole = torch.cat([gradient.flatten() for gradient in found[len(stacks) :]])
            rows.append(whole.unflatten(0, (len(self.seats.shares), -1)))
        return torch.cat(rows, dim=1)

    def gradients_of(self, voice: str) -> Tensor:
        """What backward passes of its own network left in the parameters of one voice: (T,)."""
        trained = [*self._adapters_of(voice), *self._parameters_of(voice)]
        return torch.cat([(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in trained])

    def _adapters_of(self, voice: str) -> list[Tensor]:
        factors = [matrix.factors[voice] for matrix in self._matrices.values()]
        return [tensor for own in factors for tensor in (own.down, own.up)]

    def _parameters_of(self, voice: str) -> list[Tensor]:
        return [parameter for part in self._parts.values() for parameter in part.own[voice].parameters()]

    def _build(self, matrices: Collection[str], parts: Collection[str]) -> None:
        for index, name in enumerate(matrices):
            owner_name, _, leaf = name.rpartition(".")
            owner = self.network.get_submodule(owner_name)
            matrix = self._matrices[name] = _Matrix(getattr(owner, leaf), index, self._seated)
            delattr(owner, leaf)
            setattr(owner, leaf, matrix)
        for name in parts:
            owner_name, _, leaf = name.rpartition(".")
            part = self._parts[name] = _OwnParts(self._seated)
            setattr(self.network.get_submodule(owner_name), leaf, part)

    def _seated(self) -> Seats:
        return self.seats


@torch.no_grad()
def _one_vector(parameters: Sequence[Tensor]) -> Tensor:
    """Their values one behind the other, where they lie themselves from now on."""
    vector = torch.cat([parameter.flatten() for parameter in parameters])
    for parameter, own in zip(parameters, vector.split([one.numel() for one in parameters]), strict=True):
        parameter.data = own.view_as(parameter)
    return vector


class _Matrix:
    """Stands where a frozen matrix (O, I) stood: a product with it is the sum of the matrix's and each voice's own."""

    def __init__(self, weight: Tensor, index: int, seated: Callable[[], Seats]) -> None:
        self.weight = weight
        self.index = index
        """Among the adapted matrices."""
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
        seats = self._seated()
        counts = tuple(one.columns if x.ndim == 2 else one.rows * x.shape[1] for one in seats.shares)
        flat = x.reshape(-1, x.shape[-1])
        assert sum(counts) == len(flat), f"seats for {sum(counts)} rows, a batch of {len(flat)}"
        added: Tensor = _SumOfProducts.apply(
            flat, self.weight, bias, _blocks(counts, x.device), *seats.adapters[self.index]
        )
        return added if x.ndim == 2 else added.unflatten(0, x.shape[:-1])


class _SumOfProducts(torch.autograd.Function):
    """x W^T + b, and on the rows of each voice scaling x A^T B^T: (N, I) -> (N, O). No gradient for W and b.

    One step of the graph and one product for all voices; nothing as large as W is ever formed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        blocks: "_Blocks",
        down: Tensor,
        up: Tensor,
        scaling: float,
    ) -> Tensor:
        kind = x.device.type
        ctx.blocks, ctx.scaling, ctx.dtype = blocks, scaling, down.dtype
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            down, up = down.to(dtype), up.to(dtype)
            out = functional.linear(x, weight, bias)
            spread = blocks.spread(x)
            inner = _scaled(spread @ down.mT, scaling)
            blocks.add(out, inner, up.mT)
        ctx.save_for_backward(spread, weight, inner, down, up)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        spread, weight, inner, down, up = ctx.saved_tensors
        blocks = ctx.blocks
        gradient = gradients[0].to(spread.dtype)
        above = blocks.spread_with_zeros(gradient)
        middle = _scaled(above @ up, ctx.scaling)
        into = None
        if ctx.needs_input_grad[0]:
            into = gradient @ weight
            blocks.add(into, middle, down)
        of_down, of_up = middle.mT @ spread, above.mT @ inner
        return into, None, None, None, of_down.to(ctx.dtype), of_up.to(ctx.dtype), None


def _scaled(x: Tensor, scaling: float) -> Tensor:
    return x if scaling == 1 else x * scaling


@dataclass(frozen=True)
class _Blocks:
    """Rows of K voices one behind the other, as a block per voice: (N, D) <-> (K, M, D).

    What fills a block to M rows are rows of the same voice again, so that no voice meets another's numbers.
    """

    voices: int
    places: tuple[Tensor, Tensor] | None
    """(K x M,) int64 into N rows, and (N,) the way back; None where all voices have as many rows: nothing moves"""

    def spread(self, x: Tensor) -> Tensor:
        if self.places is not None:
            x = x.index_select(0, self.places[0])
        return x.unflatten(0, (self.voices, -1))

    def spread_with_zeros(self, x: Tensor) -> Tensor:
        """The same with zeros where `spread` repeats rows: what then sums over a block counts each row once."""
        if self.places is not None:
            there, back = self.places
            x = x.new_zeros(len(there), x.shape[1]).index_copy_(0, back, x)
        return x.unflatten(0, (self.voices, -1))

    def add(self, out: Tensor, blocks: Tensor, matrices: Tensor) -> None:
        """Add the products of `blocks` (K, M, D) and `matrices` (K, D, O) to the rows of `out` (N, O), in place."""
        if self.places is None:
            out.unflatten(0, (self.voices, -1)).baddbmm_(blocks, matrices)
        else:
            out += (blocks @ matrices).flatten(0, 1).index_select(0, self.places[1])


@lru_cache(maxsize=64)
def _blocks(counts: tuple[int, ...], device: torch.device) -> _Blocks:
    longest = max(counts)
    if min(counts) == longest:
        return _Blocks(len(counts), None)
    own = torch.tensor(counts).unsqueeze(1)
    place = torch.arange(longest)
    there = (own.cumsum(0) - own) + place % own
    back = (place < own).flatten().nonzero()[:, 0]
    return _Blocks(len(counts), (there.flatten().to(device), back.to(device)))


class _OwnParts(nn.Module):
    """Stands where a part stood that every voice trains whole: each computes its own rows."""

    def __init__(self, seated: Callable[[], Seats]) -> None:
        super().__init__()
        self.own: dict[str, nn.Module] = {}
        self._seated = seated

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tensors with the rows as their first axis."""
        shares = self._seated().shares
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
