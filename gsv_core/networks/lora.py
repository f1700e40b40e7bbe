"""Low-rank additions to chosen weights of any network (LoRA; Hu et al. 2021, arXiv:2106.09685).

A weight W (O, I) becomes W + alpha / rank x B A, with A (rank, I) random and B (O, rank) zero at first; W is frozen.
Adapters live inside the network they change: `add_lora` puts them in, `merge_lora` folds them into the weights and
takes them out again. Linear layers add the product's effect on their input, which never forms the O x I matrix; any
other matrix (attention's packed `in_proj_weight`, an embedding) is replaced by the sum wherever its module reads it.
The state dict of an adapted network keeps the names it had and has `NAME.lora_A`, `NAME.lora_B` beside them;
`upstream_names` and `own_names` translate to and from those under which GPT-SoVITS saves, which are peft's.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

SEMANTIC_TARGETS = ("in_proj_weight", "out_proj", "linear1", "linear2")
"""What is adapted in every layer of text-to-semantic, with alpha = rank: attention and feed-forward. Upstream has no
such adapters."""
FLOW_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""What upstream adapts in the estimator of v3 and v4, with alpha = rank."""
WRAPPED = "cfm"
"""The part of semantic-to-mel that upstream adapts: the names below it get `WRAPPER` in front."""
WRAPPER = "base_model.model."


class _Lora(nn.Module):
    """The two factors of one weight, and how much they count."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator | None) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.scaling = alpha / rank
        drawn = nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(drawn.to(weight))
        self.lora_B = nn.Parameter(weight.new_zeros(outputs, rank))

    def addition(self) -> Tensor:
        """(O, I)."""
        return self.scaling * (self.lora_B @ self.lora_A)


class LoraLinear(_Lora):
    """A linear layer and its addition: (.., I) -> (.., O)."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None) -> None:
        super().__init__(linear.weight, rank, alpha, generator)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.linear(x, self.lora_A)
        return functional.linear(x, self.weight, self.bias) + self.scaling * functional.linear(inner, self.lora_B)

    def merged(self) -> nn.Linear:
        """A plain layer. The weight is a new one: the old may be shared."""
        outputs, inputs = self.weight.shape
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=self.bias is not None)
        with torch.no_grad():
            linear.weight = nn.Parameter(self.weight + self.addition(), requires_grad=self.weight.requires_grad)
        linear.bias = self.bias
        return linear


class LoraMatrix(_Lora):
    """The sum, where the matrix is no linear layer's: (O, I) -> (O, I)."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.addition()


def add_lora(
    network: nn.Module,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Freeze `network` and put adapters on the matrices that `targets` name; returns the names of those matrices.

    A target is the end of a matrix's dotted name, with or without `.weight`: `to_q`, `attn.to_out.0`, `in_proj_weight`.
    `alpha` is `rank` where it is not given: the additions count as they are. A is drawn on the CPU, from `generator` or
    else from torch's global one.

    Raises:
        ValueError: no rank, a target that names nothing, or a network that has adapters already.
    """
    if rank < 1:
        raise ValueError(f"LoRA needs a rank of 1 or more, got {rank}")
    if any(isinstance(module, _Lora) for module in network.modules()):
        raise ValueError("this network has LoRA adapters already; merge them first")
    matrices = [name for name, parameter in network.named_parameters() if parameter.ndim == 2]
    unknown = [target for target in targets if not any(_named(name, target) for name in matrices)]
    if unknown:
        raise ValueError(f"no matrix of the network is called {', '.join(unknown)}; choose other targets for LoRA")
    network.requires_grad_(False)
    chosen = [name for name in matrices if any(_named(name, target) for target in targets)]
    for name in chosen:
        owner_name, _, leaf = name.rpartition(".")
        owner = network.get_submodule(owner_name)
        scale = rank if alpha is None else alpha
        if isinstance(owner, nn.Linear):
            _replace(network, owner_name, LoraLinear(owner, rank, scale, generator))
        else:
            factors = LoraMatrix(getattr(owner, leaf), rank, scale, generator)
            parametrize.register_parametrization(owner, leaf, factors)
            owner.register_state_dict_post_hook(_saved_plainly)
            owner.register_load_state_dict_pre_hook(_loaded_plainly)
    return chosen


def lora_size(network: nn.Module, targets: Sequence[str], *, rank: int, inside: str = "") -> int:
    """How many numbers adapters on `targets` have, on matrices whose names begin with `inside`."""
    matrices = [(name, p) for name, p in network.named_parameters() if p.ndim == 2 and name.startswith(inside)]
    return sum(rank * sum(p.shape) for name, p in matrices if any(_named(name, target) for target in targets))


def merge_lora(network: nn.Module) -> None:
    """Fold every adapter into its weight, so that the network is as wide and as fast as it was before."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLinear):
            _replace(network, name, module.merged())
        elif parametrize.is_parametrized(module):
            found = dict(module.parametrizations.items())  # type: ignore[union-attr]  # a ModuleDict, as just seen
            for leaf in [leaf for leaf, steps in found.items() if isinstance(steps[0], LoraMatrix)]:
                with torch.no_grad():
                    merged = getattr(module, leaf).clone()
                parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
                setattr(module, leaf, nn.Parameter(merged, requires_grad=False))


def fold_factors(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with each pair of factors replaced by the matrix they belong to, theirs or else of `own`, and B A.

    Raises:
        ValueError: factors without a pair or without a matrix.
    """
    factors = {name: tensor for name, tensor in weights.items() if name.endswith((".lora_A", ".lora_B"))}
    whole = {name: tensor for name, tensor in weights.items() if name not in factors}
    for owner in sorted({name.rpartition(".")[0] for name in factors}):
        name = owner if owner in own else f"{owner}.weight"
        down, up = factors.get(f"{owner}.lora_A"), factors.get(f"{owner}.lora_B")
        if name not in own or down is None or up is None:
            raise ValueError(
                f"weights do not fit the base: LoRA's factors of {owner} are not a pair that belongs to it"
            )
        whole[name] = whole.get(name, own[name]).float() + up.float() @ down.float()
    return whole


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """What upstream saves of a network with adapters: everything but frozen parameters, buffers included."""
    frozen = {plain_name(name) for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}


def load_trained_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put what `trained_state` gave back into a network with the same adapters.

    Raises:
        ValueError: names are missing or unknown.
    """
    expected = trained_state(network).keys()
    missing, unknown = sorted(expected - state.keys()), sorted(state.keys() - expected)
    if missing or unknown:
        raise ValueError(
            f"these weights do not fit the adapted network: missing {', '.join(missing) or 'nothing'}; unknown "
            f"{', '.join(unknown) or 'nothing'}"
        )
    network.load_state_dict(dict(state), strict=False)


def upstream_names(state: Mapping[str, Tensor], wrapped: str = WRAPPED) -> dict[str, Tensor]:
    """Tensors of an adapted network under the names that upstream gives them; `wrapped` is what has the adapters."""
    adapted = {name.rpartition(".")[0] for name in state if name.endswith(".lora_A")}

    def renamed(name: str) -> str:
        owner, _, leaf = name.rpartition(".")
        if leaf in ("lora_A", "lora_B"):
            name += ".default.weight"
        elif owner in adapted:
            name = f"{owner}.base_layer.{leaf}"
        inner = name.removeprefix(f"{wrapped}.")
        return name if inner == name else f"{wrapped}.{WRAPPER}{inner}"

    return {renamed(name): tensor for name, tensor in state.items()}


def own_names(state: Mapping[str, Tensor], wrapped: str = WRAPPED) -> dict[str, Tensor]:
    """The way back from `upstream_names`; other names stay as they are."""

    def renamed(name: str) -> str:
        inner = name.removeprefix(f"{wrapped}.{WRAPPER}")
        if inner == name:
            return name
        inner = re.sub(r"\.(lora_[AB])\.default\.weight$", r".\1", inner)
        inner = re.sub(r"\.base_layer\.(weight|bias)$", r".\1", inner)
        return f"{wrapped}.{inner}"

    return {renamed(name): tensor for name, tensor in state.items()}


def plain_name(name: str) -> str:
    """The name in the state dict of a parameter that `named_parameters` calls `name`.

    torch keeps a matrix that is replaced under `parametrizations.NAME.original` and its adapter under
    `parametrizations.NAME.0`.
    """
    return re.sub(r"parametrizations\.(\w+)\.(?:original|0\.(lora_[AB]))$", _leaf, name)


def _named(matrix: str, target: str) -> bool:
    return any(f".{name}".endswith(f".{target}") for name in (matrix, matrix.removesuffix(".weight")))


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(owner), leaf, module)


def _leaf(found: re.Match[str]) -> str:
    return found[1] if found[2] is None else f"{found[1]}.{found[2]}"


def _saved_plainly(_owner: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}parametrizations.")]:
        state[plain_name(name)] = state.pop(name)


def _loaded_plainly(owner: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: Any) -> None:
    for name, _ in owner.named_parameters():
        plain = plain_name(name)
        if plain != name and prefix + plain in state:
            state[prefix + name] = state.pop(prefix + plain)
