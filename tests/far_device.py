"""A device of its own for torch that computes as the CPU does: what a GPU refuses, it refuses.

Its tensors hold one of the CPU each, which only `Far` looks at; torch believes them to be elsewhere. They have values,
unlike those of torch's device "meta", so a whole compression runs on it and must give the same file as on the CPU, but
for rounding. What it cannot tell are types that a GPU has no kernels for, and other roundings.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from onnxpq.pq import kmeans
from onnxpq.support import device

AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
REASON = f"torch {torch.__version__} takes no device that is written in Python"
if AVAILABLE:
    backend_registration._setup_privateuseone_for_python_backend("far")

FAR = torch.device("far:0" if AVAILABLE else "cpu")

_aten = torch.ops.aten
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor}
"""Where a GPU takes an index that lies on the CPU."""


class FarTensor(torch.Tensor):
    """A tensor on the device."""

    near: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "FarTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=FAR,
        )

    def __init__(self, near: torch.Tensor) -> None:
        super().__init__()
        self.near = near

    def __repr__(self) -> str:
        return f"FarTensor({self.near})"

    def tolist(self) -> Any:
        """Of a subclass torch gives out none."""
        return self.near.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file has what a GPU's tensor becomes when it is read for the CPU."""
        return self.near.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class Far(TorchDispatchMode):
    """Inside of it tensors can be made on the device; `operations` counts what was computed there."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        found = _dispatch(func, args, kwargs or {})
        self.operations += any(isinstance(leaf, FarTensor) for leaf in pytree.tree_leaves(found))
        return found


@contextmanager
def everything_far(monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    """onnxpq computes on the device, as on a GPU."""
    with monkeypatch.context() as patch, Far() as far:
        patch.setattr(device, "best", lambda: FAR)
        patch.setitem(kmeans._CHUNK_ELEMENTS, "far", kmeans._CHUNK_ELEMENTS["cpu"])
        yield far


def _dispatch(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    has_far = any(isinstance(tensor, FarTensor) for tensor in tensors)
    device_of_result = kwargs.get("device")
    goes_far = device_of_result is not None and torch.device(device_of_result).type == "far"
    if not has_far and not goes_far:
        return func(*args, **kwargs)
    if func is _aten._to_copy.default:
        copy = func(_near(args[0]), **{**kwargs, "device": "cpu"})
        return FarTensor(copy) if goes_far or device_of_result is None else copy
    if func is _aten.copy_.default:
        func(*map(_near, args), **kwargs)
        return args[0]
    if kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'far' device type for generator but found 'cpu'")
    if func not in _INDEXING and any(tensor.dim() > 0 and not isinstance(tensor, FarTensor) for tensor in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found far:0 and cpu in {func}")
    near_args, near_kwargs = pytree.tree_map(_near, (args, dict(kwargs)))
    if goes_far:
        near_kwargs["device"] = torch.device("cpu")
    found = pytree.tree_map(
        lambda value: FarTensor(value) if isinstance(value, torch.Tensor) else value, func(*near_args, **near_kwargs)
    )
    return return_and_correct_aliasing(func, args, kwargs, found)


def _near(value: Any) -> Any:
    return value.near if isinstance(value, FarTensor) else value


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> FarTensor:
    return FarTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
    return _dispatch(_aten.copy_.default, (target, source), {"non_blocking": non_blocking})


if AVAILABLE:
    # What `torch.tensor` does with numbers is out of the mode's sight.
    _library = torch.library.Library("aten", "IMPL")
    _library.impl("empty_strided", _empty_strided, "PrivateUse1")
    _library.impl("copy_", _copy, "PrivateUse1")
