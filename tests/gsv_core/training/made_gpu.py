"""A GPU that is pretended, to see without one that every tensor of a step is where it has to be.

torch has tensors without data that say they are on a GPU, but its autograd engine ends the process where there is no
driver. So these are ordinary tensors on the CPU, really computed, of which is noted that they are on the GPU: what
moves them, what they say of their device, and what is made of them follow the note, and an operation that meets both
kinds raises as a GPU's would. Code takes the branches that it takes on a GPU. What it cannot show: the numbers of a
GPU's kernels, the list of operations that autocast rounds there (a CPU's is another), streams and memory.
"""

import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_FACTORIES = (
    "arange",
    "tensor",
    "zeros",
    "ones",
    "full",
    "empty",
    "rand",
    "randn",
    "randint",
    "linspace",
    "hann_window",
)

aten = torch.ops.aten
_CROSSING = (aten.copy_.default, aten._to_copy.default)
_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""These take indices from the CPU as well."""


class PretendedGpu:
    """Which tensors are on it; `watched` has to be entered by each thread that computes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._anywhere: dict[int, weakref.ref[Any]] = {}
        """Indices that torch itself makes in a backward pass: where they are needed."""
        self._asked = threading.local()
        self._say_where(monkeypatch)
        self._make_there(monkeypatch)
        self._round_there(monkeypatch)

    @property
    def is_used(self) -> bool:
        """Something is on it."""
        return bool(self._storages)

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def take(self, tensor: Tensor) -> Tensor:
        return _noted(tensor, self._storages)

    def is_anywhere(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._anywhere

    def follow(self, made: Tensor, given: list[Tensor]) -> None:
        """`made` by an operation on `given` is where these are."""
        if any(map(self.holds, given)):
            self.take(made)
        elif (
            all(map(self.is_anywhere, given))
            and not hasattr(self._asked, "for_it")
            and torch._C._current_graph_task_id() != -1
        ):
            _noted(made, self._anywhere)

    def watched(self) -> "_Watch":
        return _Watch(self)

    def _say_where(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said, to, numpy = torch._C.TensorBase.device, Tensor.to, Tensor.numpy  # type: ignore[attr-defined]

        def moved(tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
            if args and isinstance(args[0], Tensor):
                args, kwargs = (), {"device": args[0].device, "dtype": args[0].dtype}
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
            result = to(tensor, dtype=dtype or tensor.dtype, copy=copy)
            if device is None or (device.type == "cuda") == self.holds(tensor):
                return result
            result = result.clone() if result.data_ptr() == tensor.data_ptr() else result
            self._storages.pop(result.untyped_storage()._cdata, None)
            return self.take(result) if device.type == "cuda" else result

        def as_array(tensor: Tensor, **kwargs: Any) -> Any:
            if self.holds(tensor):
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            return numpy(tensor, **kwargs)

        where = property(lambda tensor: CUDA if self.holds(tensor) else said.__get__(tensor))
        monkeypatch.setattr(Tensor, "device", where, raising=False)
        monkeypatch.setattr(Tensor, "is_cuda", property(self.holds), raising=False)
        monkeypatch.setattr(Tensor, "to", moved)
        monkeypatch.setattr(Tensor, "cpu", lambda tensor: moved(tensor, _CPU))
        monkeypatch.setattr(Tensor, "numpy", as_array)

    def _make_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def made(factory: Callable[..., Tensor], *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            there = device is not None and torch.device(device).type == "cuda"
            if there and kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            self._asked.for_it = True
            try:
                result = factory(*args, **kwargs) if there else factory(*args, device=device, **kwargs)
            finally:
                del self._asked.for_it
            return self.take(result) if there else result

        for name in _FACTORIES:
            monkeypatch.setattr(torch, name, partial(made, getattr(torch, name)))

    @staticmethod
    def _round_there(monkeypatch: pytest.MonkeyPatch) -> None:
        """Autocast and random state of the GPU are the CPU's."""

        def on_cpu(known: Callable[..., Any], device_type: str, *args: Any, **kwargs: Any) -> Any:
            return known("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

        for name in ("autocast", "get_autocast_dtype", "is_autocast_enabled"):
            monkeypatch.setattr(torch, name, partial(on_cpu, getattr(torch, name)))
        monkeypatch.setattr(torch.amp, "autocast", torch.autocast)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _device: torch.get_rng_state())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda _state, _device: None)


class _Watch(TorchDispatchMode):
    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = args[:1] if func in _INDEXING else args
        tensors = [one for one in tree_leaves((given, kwargs)) if isinstance(one, Tensor)]
        there = [one for one in tensors if self._gpu.holds(one)]
        here = [one for one in tensors if one.ndim and not self._gpu.holds(one) and not self._gpu.is_anywhere(one)]
        if func in _CROSSING:
            tensors = there = there if self._gpu.holds(args[0]) else []
        elif there and here:
            shapes = [(tuple(one.shape), str(one.device)) for one in tensors]
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {shapes}")
        elif func in _INDEXING and not there and any(map(self._gpu.holds, _indices(args))):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if there and kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        result = func(*args, **kwargs)
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._gpu.follow(one, tensors)
        return result


def _noted(tensor: Tensor, notes: dict[int, weakref.ref[Any]]) -> Tensor:
    storage = tensor.untyped_storage()
    key = storage._cdata
    if key not in notes:
        notes[key] = weakref.ref(storage, lambda _: notes.pop(key, None))
    return tensor


def _indices(args: tuple[Any, ...]) -> list[Tensor]:
    return [one for one in tree_leaves(args[1:]) if isinstance(one, Tensor)]
