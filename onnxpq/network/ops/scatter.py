"""Values put at indices, and indices made of values."""
# ruff: noqa: A002 - parameters are ONNX's attributes: their names are given

import math

import torch
from torch import Tensor

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register
from onnxpq.network.ops.shape import non_negative
from onnxpq.network.ops.tensors import ints, torch_dtype

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@register("Scatter", 9, 11)
@register("ScatterElements", 11, 13, 16, 18)
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """A copy of x with one element replaced by, or reduced with, each update."""
    at = non_negative(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, at, updates)
    return x.scatter_reduce(axis, at, updates, _reduce(reduction), include_self=True)


@register("ScatterND", 11, 13, 16, 18)
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """A copy of x with slices replaced by, or reduced with, the updates; index tuples lie in the last axis."""
    depth = indices.shape[-1]
    sizes = list(x.shape[:depth])
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for i, size in enumerate(sizes):
        flat = flat * size + non_negative(indices[..., i], size)
    slices = x.reshape(math.prod(sizes), -1)
    rows = flat.reshape(-1, 1).expand(-1, slices.shape[1])
    values = updates.reshape(rows.shape)
    if reduction == "none":
        return slices.scatter(0, rows, values).reshape(x.shape)
    return slices.scatter_reduce(0, rows, values, _reduce(reduction), include_self=True).reshape(x.shape)


def _reduce(reduction: str) -> str:
    if reduction not in _REDUCE:
        raise UnsupportedOperatorError(f"Reduction '{reduction}'; expected none, {', '.join(_REDUCE)}.")
    return _REDUCE[reduction]


@register("TensorScatter", 24)
def tensor_scatter(
    cache: Tensor, update: Tensor, write_indices: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """A copy of the cache with the update written along one axis, for each sample from its own index on."""
    dim = axis % cache.ndim
    steps = torch.arange(update.shape[dim], device=cache.device)
    starts = torch.zeros(len(cache), dtype=torch.int64) if write_indices is None else write_indices.to(torch.int64)
    at = starts.to(cache.device).reshape(-1, 1) + steps
    if mode == "circular":
        at = at % cache.shape[dim]
    shape = [1] * cache.ndim
    shape[0], shape[dim] = at.shape
    return cache.scatter(dim, at.reshape(shape).expand_as(update), update)


@register("OneHot", 9, 11, 28)
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """A new axis of `depth` entries: values[1] at the index, values[0] elsewhere and for indices out of range."""
    count = ints(depth)[0]
    places = torch.arange(count, device=indices.device)
    at = indices.to(torch.int64)
    at = torch.where(at < 0, at + count, at).unsqueeze(-1)
    return torch.where(at == places, values[1], values[0]).movedim(-1, axis)


@register("NonZero", 9, 13)
def non_zero(x: Tensor) -> Tensor:
    """The index tuples of all non-zero elements [rank, count], in order."""
    return x.reshape(1).nonzero().mT[:0] if x.ndim == 0 else x.nonzero().mT


@register("Compress", 9, 11, 28)
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices along an axis for which the condition holds; without axis those of x laid out flat."""
    chosen = condition.nonzero().reshape(-1)
    return x.reshape(-1).index_select(0, chosen) if axis is None else x.index_select(axis, chosen)


@register("EyeLike", 9, 22)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on the k-th diagonal of a matrix of the size of x."""
    rows, columns = x.shape
    at = torch.arange(columns, device=x.device) - torch.arange(rows, device=x.device).unsqueeze(1)
    return (at == k).to(x.dtype if dtype is None else torch_dtype(dtype))


@register("ReverseSequence", 10, 28)
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first `lengths` steps of each sample in reverse order, the others as they are."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    ends = lengths.to(torch.int64).unsqueeze(1)
    at = torch.where(steps < ends, ends - 1 - steps, steps)
    shape = [1] * x.ndim
    shape[batch_axis], shape[time_axis] = at.shape
    order = at if batch_axis < time_axis else at.mT
    return x.gather(time_axis, order.reshape(shape).expand_as(x))


@register("Unique", 11, 28)
def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The different elements or slices, where each is first, which one each is, and how often it occurs."""
    dim = 0 if axis is None else axis % x.ndim
    source = x.reshape(-1) if axis is None else x
    y, inverse, counts = torch.unique(source, dim=dim, return_inverse=True, return_counts=True)
    places = torch.arange(len(inverse), device=x.device)
    first = torch.full_like(counts, len(inverse)).scatter_reduce(0, inverse, places, "amin")
    if not sorted:
        order = first.argsort()
        y, first, counts = y.index_select(dim, order), first[order], counts[order]
        inverse = order.argsort()[inverse]
    return y, first, inverse, counts
