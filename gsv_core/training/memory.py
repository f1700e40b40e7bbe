"""How much memory a training will need, counted before its first step, and the plan that fits into what there is.

The trainer itself takes a step on tensors without data (torch's meta device): every operation of forward, backward
and optimiser happens, nothing is computed, and the bytes of all tensors alive at once are counted. What is small, such
as lengths and indices, is computed all the same, since shapes follow from it. So the count follows the trainers
whatever they become: saved activations, temporary tensors, layers that are computed again, gradients that add up.
Convolutions on a CPU hold copies of what they read and write, in their own layout; they are counted as well. A step in
bfloat16 or float16 is counted on a CPU as if it were float32, which bounds it from above. On a GPU, where a step is
short, some real ones are taken and its allocator asked.
"""

import copy
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gsv_core.audio.spectrogram import mel_filterbank
from gsv_core.checkpoints.base import BaseModel
from gsv_core.training.batches import BatchOrder, TrainingItem, padded_length
from gsv_core.training.mel_trainer import MelTrainer
from gsv_core.training.precision import LossScale, Precision
from gsv_core.training.schedules import UPSTREAM_ACCUMULATED, PhasePlan, Schedule
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.wave_trainer import WaveTrainer

AnyTrainer = SemanticTrainer | WaveTrainer | MelTrainer
Shapes = tuple[tuple[int, ...], ...]
"""Per part of a batch the lengths of its clips."""

_SMALL = 1 << 15
"""Tensors of fewer elements are really computed."""
_PHONEME_SHARE = 1 / 4
"""Of the columns of a clip in text-to-semantic: 10 phonemes and 25 tokens a second are usual, and a little less."""
_PHONEMES_PER_FRAME = 1 / 5
_SHORTEST_WINDOW = 128
"""Frames of a clip that a step still learns from, 2.6 s."""

_TORN_PERCENT = {SemanticTrainer: 20, WaveTrainer: 20, MelTrainer: 95}
"""Of the activations: what a process grows by beyond its tensors, beside the place of the gradients once more, which
come and go and leave holes. Measured with glibc: networks at full size and at nano's, v4 with a third of its layers."""
_UNEVEN_PERCENT = 4
"""Of all tensors, where `pages` has their memory returned: what is left of pages that they do not fill."""
_KERNELS_BYTES = 60_000_000
"""Prepared in a process for the many shapes of SoVITS's convolutions."""

aten = torch.ops.aten
_CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
_OUTLINES: dict[Any, Callable[..., Any]] = {
    # What is on the CPU already is not copied to it.
    aten._to_copy.default: lambda tensor: tensor.detach(),
    aten._weight_norm_interface_backward.default: lambda _, v, g, *__: (torch.empty_like(v), torch.empty_like(g)),
}
"""What torch does not know without data."""
_KNOWN: dict[tuple[Any, ...], "Estimate"] = {}
"""A worker trains many voices of the same shapes."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes that a phase of training adds to what the base already takes, at the worst moment of a step."""

    weights: int
    """The trainer's copy of the networks."""
    gradients: int
    optimiser: int
    activations: int
    """All else that is alive at that moment: what the backward pass needs, and what it is just working on."""
    workspace: int
    """Inside the kernel that runs at that moment."""
    allocator: int
    """Held by the allocator and of no use to anyone."""

    @property
    def total(self) -> int:
        return sum(getattr(self, entry.name) for entry in fields(self))

    def record(self) -> dict[str, float]:
        """Megabytes, by part and in all."""
        parts = {entry.name: getattr(self, entry.name) for entry in fields(self)} | {"total": self.total}
        return {name: round(value / 1e6, 1) for name, value in parts.items()}


def estimate(
    base: BaseModel, phase: str, plan: PhasePlan, lengths: Sequence[int], *, device: torch.device | str = "cpu"
) -> Estimate:
    """What `phase` of a voice with clips of `lengths` (as its trainer's `length` has them) needs on `device`.

    The batch that decides is that of the longest clips, in parts as `plan` has it.
    """
    if not lengths:
        raise ValueError(f"memory: {phase} training of a voice without clips; give the lengths of its clips")
    if not plan.steps:
        return Estimate(weights=0, gradients=0, optimiser=0, activations=0, workspace=0, allocator=0)
    longest = sorted(lengths, reverse=True)[: plan.batch_size]
    order = BatchOrder.of(longest, plan, "memory", phase)
    parts = order.parts(range(len(longest)), accumulate=plan.accumulate, most_frames=plan.most_frames)
    parts.sort(key=lambda part: -len(part) * padded_length(longest[part[0]]))
    # Two parts cost as much as any number: the second finds the gradients of the first.
    shapes = tuple(tuple(padded_length(longest[index]) for index in part) for part in parts[:2])
    device = torch.device(device)
    if device.type != "cuda":
        plan = replace(plan, precision=Precision.FLOAT32)
    # Neither the rates nor the clips themselves matter, nor, since it works on clips, augmentation. At a high rate the
    # judges' first step would leave the generator without finite gradients.
    plan = replace(plan, augment=False, steps=2, warm_up_steps=0, learning_rate=1e-9, seed=0)
    known = base.digest, phase, plan, shapes, str(device)
    if known not in _KNOWN:
        if device.type == "cuda":
            _KNOWN[known] = _measured(base, phase, plan, shapes, device)
        else:
            _KNOWN[known] = _rehearsed(base, phase, plan, shapes)
    return _KNOWN[known]


def fit_to(
    budget_bytes: int,
    base: BaseModel,
    phase: str,
    plan: PhasePlan,
    lengths: Sequence[int],
    *,
    device: torch.device | str = "cpu",
) -> PhasePlan:
    """`plan`, changed as little as it takes to stay within `budget_bytes`, from cheap to dear.

    First smaller parts of a batch, which give the same result; then activations that are computed again, which takes a
    second forward pass; last, for SoVITS, shorter windows of long clips, which train on less of a clip in each step.

    Raises:
        ValueError: not even one short clip at a time fits.
    """
    if not plan.steps:
        return plan
    needed = 0
    for candidate in _candidates(plan, phase, lengths):
        cut = lengths if phase == "semantic" else [min(length, candidate.longest_frames) for length in lengths]
        needed = estimate(base, phase, candidate, cut, device=device).total
        if needed <= budget_bytes:
            return candidate
    raise ValueError(
        f"memory: {phase} training of {base.release} needs {needed / 1e6:.0f} MB for one clip at a time, and there are "
        f"{budget_bytes / 1e6:.0f} MB; let it train less (recipe.{phase}.trains), or give it more memory"
    )


def _candidates(plan: PhasePlan, phase: str, lengths: Sequence[int]) -> Iterator[PhasePlan]:
    """`plan` and what may be done instead, each slower than the one before."""
    yield plan
    windows = [min(plan.longest_frames, max(lengths))]
    while phase == "wave" and windows[-1] >= 2 * _SHORTEST_WINDOW:
        windows.append(windows[-1] // 2)
    for number, window in enumerate(windows):
        longest = padded_length(min(window, max(lengths)) if phase == "wave" else max(lengths))
        for recompute in (False, True) if number == 0 and not plan.checkpoint_layers else (True,):
            clips = min(plan.batch_size, len(lengths))
            while clips:
                yield replace(
                    plan,
                    # As many clips of the longest kind in a part, or more of the short ones.
                    most_frames=clips * longest,
                    accumulate=1,
                    checkpoint_layers=recompute,
                    longest_frames=window if number else plan.longest_frames,
                )
                clips //= 2


def free_memory(device: torch.device | str) -> int:
    """Bytes that training may still take of a GPU: what is free, and what torch holds without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_shortage(error: BaseException) -> bool:
    """Whether torch says with `error` that memory ran out, a GPU's or this process's."""
    # Only the former is of a kind of its own.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _trainer(base: BaseModel, phase: str, plan: PhasePlan, device: torch.device) -> AnyTrainer:
    if phase == "semantic":
        return SemanticTrainer(base, plan, voice="memory", device=device)
    if base.semantic_to_mel is None:
        return WaveTrainer(base, plan, voice="memory", device=device)
    return MelTrainer(base, plan, voice="memory", device=device)


def _measured(base: BaseModel, phase: str, plan: PhasePlan, shapes: Shapes, device: torch.device) -> Estimate:
    """What some steps take of a GPU, as its allocator counts; more than there is where they do not fit."""
    trainer: AnyTrainer | None = None
    before = torch.cuda.memory_allocated(device)
    weights = gradients = optimiser = 0
    try:
        trainer = _trainer(base, phase, plan, device)
        weights = torch.cuda.memory_allocated(device) - before
        torch.cuda.reset_peak_memory_stats(device)  # an error before the first tensor there
        for scale in (value for value in vars(trainer).values() if isinstance(value, LossScale)):
            scale.value = 1.0  # a larger one may be too large: steps would be left out, and with them AdamW's state
        batches = [trainer.collate(_items(base, phase, part)) for part in shapes]
        # Upstream's optimiser of GPT makes its first step, and with it its state, some batches later.
        waits = UPSTREAM_ACCUMULATED if plan.schedule is Schedule.UPSTREAM_SEMANTIC else 0
        for _ in range(2 + waits):
            trainer.step(batches)  # type: ignore[arg-type]  # each takes its own kind
        gradients, optimiser = _gradient_bytes(trainer), _state_bytes(trainer)
        peak = torch.cuda.max_memory_allocated(device) - before
    except torch.cuda.OutOfMemoryError:
        peak = torch.cuda.get_device_properties(device).total_memory + 1
    finally:
        trainer = None
        gc.collect()
        torch.cuda.empty_cache()
    rest = peak - weights - gradients - optimiser
    return Estimate(
        weights=weights, gradients=gradients, optimiser=optimiser, activations=rest, workspace=0, allocator=0
    )


def _rehearsed(base: BaseModel, phase: str, plan: PhasePlan, shapes: Shapes) -> Estimate:
    """What a step takes on a CPU, without computing it."""
    # What is made once and kept by all must not be made without data.
    mel_filterbank(base.spec.spectrogram)
    # torch loads its compiler with the first optimiser of a process, which must not be counted.
    torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    hollow, count = _hollow(base), _Count()
    count.is_there(tensor for part in _networks(hollow).values() for tensor in part.state_dict().values())
    with count:
        trainer = _trainer(hollow, phase, plan, torch.device("cpu"))
        weights = count.live
        for optimiser in _optimisers(trainer):
            _as_after_a_step(optimiser)
    batches = [trainer.collate(_items(base, phase, part)) for part in shapes]
    count.gradients = lambda: _gradient_bytes(trainer)
    with count, _FusedAttention():
        emptied = [_emptied_batch(batch) for batch in batches]
        trainer.step(emptied)  # type: ignore[arg-type]  # each takes its own kind
        if _gradient_bytes(trainer):  # which the next step finds
            trainer.step(emptied)  # type: ignore[arg-type]
    state = _state_bytes(trainer)
    activations = count.peak - count.peak_workspace - count.peak_gradients - weights - state
    if plan.checkpoint_layers:
        lost = (count.peak - count.peak_workspace) * _UNEVEN_PERCENT // 100
    else:
        lost = state // 2 + activations * _TORN_PERCENT[type(trainer)] // 100
    return Estimate(
        weights=weights,
        gradients=count.peak_gradients,
        optimiser=state,
        activations=activations,
        workspace=count.peak_workspace,
        allocator=lost + _KERNELS_BYTES * (phase == "wave"),
    )


class _Count(TorchDispatchMode):
    """Inside the block large tensors hold no data, and the bytes of all that are alive are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.peak_workspace = self.peak_gradients = 0
        self.gradients: Callable[[], int] = lambda: 0
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        if func is aten._local_scalar_dense.default and given[0].is_meta:
            return torch.ones((), dtype=given[0].dtype).item()  # finite, and true
        large = any(tensor.is_meta or tensor.numel() >= _SMALL for tensor in given)
        result = _without_data(func, args, kwargs) if large else _computed_if_small(func, args, kwargs)
        made = _tensors(result)
        for tensor in made:
            self._count(tensor)
        workspace = sum(map(_bytes, [*given, *made])) if func in _CONVOLUTIONS else 0
        if self.live + workspace > self.peak:
            self.peak, self.peak_workspace, self.peak_gradients = self.live + workspace, workspace, self.gradients()
        return result

    def is_there(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these."""
        before = self.live
        for tensor in tensors:
            self._count(tensor)
        self.live = before

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = size, weakref.ref(storage, lambda _: self._forget(key))
            self.live += size

    def _forget(self, key: int) -> None:
        size, _ = self._alive.pop(key)
        self.live -= size


class _FusedAttention(TorchFunctionMode):
    """Inside the block attention without data takes the kernel that a CPU takes, which keeps no weights of pairs."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:  # which may compute layers again
            with self:
                return torch.autograd.backward(args[0])
        if func is not functional.scaled_dot_product_attention or not args[0].is_meta or kwargs.get("dropout_p"):
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=args[0].dtype).masked_fill(~mask, -torch.inf)
        return aten._scaled_dot_product_flash_attention_for_cpu(*args, attn_mask=mask, scale=kwargs.get("scale"))[0]


def _without_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    args, kwargs = _emptied_within(args), {name: _emptied_within(value) for name, value in kwargs.items()}
    if func in _OUTLINES and kwargs.get("dtype") in (None, args[0].dtype):
        return _OUTLINES[func](*args)
    if "device" in kwargs:
        kwargs["device"] = torch.device("meta")
    if "generator" in kwargs:
        kwargs["generator"] = None
    return func(*args, **kwargs)


def _computed_if_small(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func` makes of small tensors; without data where that is large."""
    try:
        outline = _without_data(func, args, dict(kwargs))
    except (NotImplementedError, RuntimeError):  # the shape of the result follows from values
        return func(*args, **kwargs)
    if any(tensor.numel() >= _SMALL for tensor in _tensors(outline)):
        return outline
    return func(*args, **kwargs)


def _emptied(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _emptied_within(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _emptied(value)
    if isinstance(value, list | tuple):
        return type(value)(_emptied_within(inner) for inner in value)
    return value


def _emptied_batch(batch: Any) -> Any:
    large = {
        entry.name: _emptied(value)
        for entry in fields(batch)
        if isinstance(value := getattr(batch, entry.name), Tensor) and value.numel() >= _SMALL
    }
    return replace(batch, **large)


def _tensors(value: Any) -> list[Tensor]:
    """All within lists, tuples and the values of dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for inner in value for tensor in _tensors(inner)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _hollow(base: BaseModel) -> BaseModel:
    """`base` with networks that hold no data."""

    def emptied(network: nn.Module) -> Any:
        memo: dict[int, Any] = {}
        for parameter in network.parameters():
            memo[id(parameter)] = nn.Parameter(_emptied(parameter.detach()), requires_grad=parameter.requires_grad)
        for buffer in network.buffers():
            memo[id(buffer)] = _emptied(buffer)
        return copy.deepcopy(network, memo)

    return replace(base, **{name: emptied(part) for name, part in _networks(base).items()})


def _networks(base: BaseModel) -> dict[str, nn.Module]:
    """What trainers copy, by the names in `BaseModel`."""
    names = ("text_to_semantic", "semantic_to_wave", "discriminators", "semantic_to_mel")
    return {name: part for name in names if (part := getattr(base, name)) is not None}


def _items(base: BaseModel, phase: str, lengths: Sequence[int]) -> list[TrainingItem]:
    """Silent clips of `lengths`, as the trainer of `phase` measures them."""
    if phase == "semantic":
        width = base.text_to_semantic.config.text_vector_width
        return [_semantic_item(number, length, width) for number, length in enumerate(lengths)]
    config = base.acoustic.config
    speaker_width = getattr(config, "speaker_vector_width", None)
    return [
        TrainingItem(
            clip_id=f"clip {number}",
            phoneme_ids=torch.zeros(max(1, round(length * _PHONEMES_PER_FRAME)), dtype=torch.int64),
            tokens=torch.zeros(max(1, length // 2), dtype=torch.int64),
            content=torch.zeros(length, config.content_width),
            wave=torch.zeros(length * base.spec.spectrogram.hop),
            speaker_vector=None if speaker_width is None else torch.zeros(speaker_width),
        )
        for number, length in enumerate(lengths)
    ]


def _semantic_item(number: int, length: int, width: int) -> TrainingItem:
    phonemes = max(1, round(length * _PHONEME_SHARE))
    return TrainingItem(
        clip_id=f"clip {number}",
        phoneme_ids=torch.zeros(phonemes, dtype=torch.int64),
        tokens=torch.zeros(max(1, length - phonemes), dtype=torch.int64),
        content=torch.zeros(1, 1),
        wave=torch.zeros(1),
        text_vectors=torch.zeros(phonemes, width),
    )


def _optimisers(trainer: AnyTrainer) -> list[torch.optim.Optimizer]:
    return [value for value in vars(trainer).values() if isinstance(value, torch.optim.Optimizer)]


def _trained(optimiser: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimiser.param_groups for parameter in group["params"])


def _as_after_a_step(optimiser: torch.optim.Optimizer) -> None:
    """What earlier steps would have left behind, two values for each that is trained; and no step."""
    for parameter in _trained(optimiser):
        optimiser.state[parameter] = {name: torch.zeros_like(parameter) for name in ("first", "second")}
    optimiser.step = lambda: None  # type: ignore[method-assign, assignment, misc]


def _gradient_bytes(trainer: AnyTrainer) -> int:
    trained = (parameter for optimiser in _optimisers(trainer) for parameter in _trained(optimiser))
    return sum(_bytes(parameter.grad) for parameter in trained if parameter.grad is not None)


def _state_bytes(trainer: AnyTrainer) -> int:
    return sum(map(_bytes, _tensors([list(optimiser.state.values()) for optimiser in _optimisers(trainer)])))
