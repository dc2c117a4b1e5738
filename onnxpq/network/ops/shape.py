"""Operators that move, choose, repeat or convert values but do not compute with them."""
# ruff: noqa: PLR0913 - parameters are ONNX's attributes: their number is given

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register
from onnxpq.network.ops.tensors import ints, torch_dtype


@register("Identity", 1, 13, 14, 16, 19, 21, 23, 24, 25)
def identity(x: Any) -> Any:
    """The input."""
    return x


@register("Dropout", 7)
def dropout_7(x: Tensor, *, ratio: float = 0.5, n_outputs: int = 1) -> Any:  # noqa: ARG001
    """Nothing is dropped at inference; onnxruntime then gives a mask of zeros of the type of x."""
    return x if n_outputs == 1 else (x, torch.zeros_like(x))


@register("Dropout", 10)
def dropout_10(x: Tensor, *, ratio: float = 0.5, n_outputs: int = 1) -> Any:  # noqa: ARG001
    """Nothing is dropped at inference; onnxruntime then gives a mask that is all false."""
    return x if n_outputs == 1 else (x, torch.zeros_like(x, dtype=torch.bool))


@register("Dropout", 12, 13, 22)
def dropout(
    x: Tensor,
    ratio: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    seed: int | None = None,  # noqa: ARG001 - of training mode
    n_outputs: int = 1,
) -> Any:
    """Nothing is dropped at inference; the second output is the mask, all true."""
    if training_mode is not None and bool(training_mode) and (ratio is None or float(ratio) > 0):
        raise UnsupportedOperatorError("Dropout in training mode is random; export the model for inference.")
    return x if n_outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


@register("Constant", 1, 9)
def constant_tensor(*, value: Any) -> Any:
    """Constant before opset 11: a tensor."""
    return value


@register("Constant", 11, 12, 13, 19, 21, 23, 24, 25)
def constant(
    *,
    sparse_value: Any = None,
    value: Any = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> Any:
    """The one attribute that is given."""
    if sparse_value is not None:
        raise UnsupportedOperatorError("Constant with a sparse value is not supported.")
    if value is not None:
        return value
    text = value_string if value_string is not None else value_strings
    if text is not None:
        return np.array(text, dtype=object)
    number = value_float if value_float is not None else value_floats
    if number is not None:
        return torch.tensor(number, dtype=torch.float32)
    return torch.tensor(value_int if value_int is not None else value_ints, dtype=torch.int64)


@register("ConstantOfShape", 9, 20, 21, 23, 24, 25)
def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """A tensor of one repeated value, by default the float 0."""
    value = torch.zeros(1) if value is None else value
    return torch.full(ints(shape), value.item(), dtype=value.dtype, device=shape.device)


@register("Shape", 1, 13, 15, 19, 21, 23, 24, 25)
def shape_of(x: Any, *, end: int | None = None, start: int = 0) -> Tensor:
    """The sizes from axis `start` up to `end`."""
    # Slices of Python limit out-of-range ends as ONNX does.
    return torch.tensor(list(x.shape)[slice(start, end)], dtype=torch.int64)


@register("Size", 1, 13, 19, 21, 23, 24, 25)
def size_of(x: Any) -> Tensor:
    """The number of elements."""
    return torch.tensor(math.prod(x.shape), dtype=torch.int64)


@register("Reshape", 5, 13, 14, 19, 21, 23, 24, 25)
def reshape(x: Any, shape: Tensor, *, allowzero: int = 0) -> Any:
    """New sizes: -1 is what remains, 0 copies the old size unless `allowzero`."""
    sizes = ints(shape)
    if not allowzero:
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


@register("Flatten", 1, 9, 11, 13, 21, 23, 24, 25)
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the axes before `axis`, and those from it on."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@register("Transpose", 1, 13, 21, 23, 24, 25)
def transpose(x: Any, *, perm: Sequence[int] | None = None) -> Any:
    """Permuted axes, by default in reverse order."""
    order = list(perm) if perm is not None else list(reversed(range(x.ndim)))
    return x.permute(order) if isinstance(x, Tensor) else x.transpose(order)


@register("Squeeze", 1, 11)
def squeeze_by_attribute(x: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    """Squeeze before opset 13: the axes are an attribute."""
    return _squeeze(x, axes)


@register("Squeeze", 13, 21, 23, 24, 25)
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop the given axes of size 1, by default all of them."""
    return _squeeze(x, None if axes is None else ints(axes))


def _squeeze(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@register("Unsqueeze", 1, 11)
def unsqueeze_by_attribute(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """Unsqueeze before opset 13: the axes are an attribute."""
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@register("Unsqueeze", 13, 21, 23, 24, 25)
def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """Insert axes of size 1; the numbers are those of the result."""
    return unsqueeze_by_attribute(x, axes=ints(axes))


@register("Expand", 8, 13)
def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast with `shape`, where a 1 keeps the size of x."""
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(ints(shape))))


@register("Tile", 6, 13)
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat the whole tensor along each axis."""
    return x.repeat(ints(repeats))


@register("Concat", 4, 11, 13)
def concat(*inputs: Tensor, axis: int) -> Tensor:
    """All inputs along one axis."""
    return torch.cat(inputs, axis)


@register("Split", 2, 11)
def split_by_attribute(
    x: Tensor, *, axis: int = 0, split: Sequence[int] | None = None, n_outputs: int = 1
) -> tuple[Tensor, ...]:
    """Split before opset 13: the sizes are an attribute; by default all parts are equal."""
    sizes = list(split) if split is not None else [x.shape[axis] // n_outputs] * n_outputs
    return torch.split_with_sizes(x, sizes, axis)


@register("Split", 13, 18)
def split(
    x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None, n_outputs: int = 1
) -> tuple[Tensor, ...]:
    """Parts of the given sizes; without sizes all are equal but for the last, which may be smaller."""
    if sizes is not None:
        return torch.split_with_sizes(x, ints(sizes), axis)
    total, parts = x.shape[axis], num_outputs or n_outputs
    chunk = math.ceil(total / parts)
    return torch.split_with_sizes(x, [max(min(chunk, total - i * chunk), 0) for i in range(parts)], axis)


@register("Slice", 1)
def slice_by_attribute(
    x: Tensor, *, axes: Sequence[int] | None = None, ends: Sequence[int], starts: Sequence[int]
) -> Tensor:
    """Slice before opset 10: everything is an attribute, there are no steps."""
    return _slice(x, starts, ends, axes or range(len(starts)), [1] * len(starts))


@register("Slice", 10, 11, 13)
def slice_(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    """Python's slices along the given axes, by default the first ones."""
    begin = ints(starts)
    chosen = range(len(begin)) if axes is None else ints(axes)
    return _slice(x, begin, ints(ends), chosen, [1] * len(begin) if steps is None else ints(steps))


def _slice(x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]) -> Tensor:
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step > 0:
            first, stop, _ = slice(start, end, step).indices(size)
            at = [slice(None)] * (axis % x.ndim) + [slice(first, max(stop, first), step)]
            x = x[tuple(at)]
        else:
            # torch has no negative steps. Unlike Python, ONNX moves a start before the first element to the first.
            picks = range(size)[slice(max(start, -size), None if end < -size else end, step)]
            x = x.index_select(axis, torch.tensor(list(picks), dtype=torch.int64, device=x.device))
    return x


@register("Gather", 1, 11, 13)
def gather(x: Any, indices: Tensor, *, axis: int = 0) -> Any:
    """Whole slices of x; a negative index counts from the end."""
    if isinstance(x, np.ndarray):
        return np.asarray(np.take(x, indices.cpu().numpy(), axis=axis), dtype=object)
    axis = axis % x.ndim
    flat = non_negative(indices.reshape(-1), x.shape[axis])
    picked = x.index_select(axis, flat)
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@register("GatherElements", 11, 13)
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """One element of x for each index."""
    return x.gather(axis, non_negative(indices, x.shape[axis]))


@register("GatherND", 11, 12, 13)
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices of x chosen by the index tuples in the last axis of `indices`."""
    batch = x.shape[:batch_dims]
    flat_x = x.reshape(-1, *x.shape[batch_dims:])
    flat_indices = indices.reshape(flat_x.shape[0], -1, indices.shape[-1])
    sizes = x.shape[batch_dims:]
    places = [non_negative(flat_indices[..., i], sizes[i]) for i in range(indices.shape[-1])]
    rows = torch.arange(flat_x.shape[0], device=x.device).reshape(-1, 1).expand_as(places[0])
    picked = flat_x[(rows, *places)]
    return picked.reshape((*batch, *indices.shape[batch_dims:-1], *sizes[indices.shape[-1] :]))


def non_negative(indices: Tensor, size: int) -> Tensor:
    """Indices into an axis of `size` entries; a negative one counts from its end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@register("Pad", 2)
def pad_by_attribute(x: Tensor, *, mode: str = "constant", pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad before opset 11: everything is an attribute."""
    return _pad(x, pads, range(x.ndim), mode, value)


@register("Pad", 11, 13, 18, 19, 21, 23, 24, 25)
def pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: str = "constant"
) -> Tensor:
    """Add values at the borders, or remove them where the number is negative."""
    chosen = range(x.ndim) if axes is None else [a % x.ndim for a in ints(axes)]
    return _pad(x, ints(pads), chosen, mode, 0 if value is None else value.item())


def _pad(x: Tensor, pads: Sequence[int], axes: Sequence[int], mode: str, value: float) -> Tensor:
    half = len(axes)
    if mode == "constant":
        widths = [0] * 2 * x.ndim
        for i, axis in enumerate(axes):
            at = 2 * (x.ndim - 1 - axis)
            widths[at : at + 2] = pads[i], pads[i + half]
        return functional.pad(x, widths, value=value)
    for i, axis in enumerate(axes):
        x = x.index_select(axis, _mirrored(x.shape[axis], pads[i], pads[i + half], mode).to(x.device))
    return x


def _mirrored(size: int, before: int, after: int, mode: str) -> Tensor:
    """Where each element of a padded axis comes from."""
    at = torch.arange(-before, size + after)
    if mode == "edge":
        return at.clamp(0, size - 1)
    if mode == "wrap":
        return at % size
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        at = at % period
        return torch.where(at >= size, period - at, at)
    raise UnsupportedOperatorError(f"Pad in mode '{mode}'; constant, edge, reflect and wrap are supported.")


@register("CenterCropPad", 18)
def center_crop_pad(x: Tensor, shape: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    """Crop around the middle, or pad with zeros on both sides, to the given sizes."""
    chosen = range(x.ndim) if axes is None else [a % x.ndim for a in axes]
    sizes = ints(shape)
    cut = [max(x.shape[axis] - size, 0) for axis, size in zip(chosen, sizes, strict=True)]
    for axis, size, lost in zip(chosen, sizes, cut, strict=True):
        x = x.narrow(axis, lost // 2, min(size, x.shape[axis]))
    missing = [size - x.shape[axis] for axis, size in zip(chosen, sizes, strict=True)]
    return _pad(x, [n // 2 for n in missing] + [n - n // 2 for n in missing], chosen, "constant", 0)


@register("Cast", 6, 9, 13, 19, 21, 23, 24, 25, 28)
def cast(x: Any, *, round_mode: str = "up", saturate: int = 1, to: int) -> Tensor:  # noqa: ARG001 - of 8-bit floats
    """Convert the element type."""
    if not isinstance(x, Tensor):
        raise UnsupportedOperatorError("Cast of strings is not supported.")
    return x.to(torch_dtype(to))


@register("CastLike", 15, 19, 21, 23, 24, 25)
def cast_like(x: Any, like: Any, *, round_mode: str = "up", saturate: int = 1) -> Tensor:  # noqa: ARG001
    """Convert to the element type of the second input."""
    if not isinstance(x, Tensor) or not isinstance(like, Tensor):
        raise UnsupportedOperatorError("CastLike of strings is not supported.")
    return x.to(like.dtype)


@register("Range", 11, 27)
def range_(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:  # noqa: ARG001
    """Numbers from start up to limit, without it, in steps of delta."""
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    return start + torch.arange(count, device=start.device).to(start.dtype) * delta


@register("Trilu", 14)
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle of each matrix, k diagonals off."""
    diagonal = 0 if k is None else ints(k)[0]
    return x.triu(diagonal) if upper else x.tril(diagonal)


@register("DepthToSpace", 1, 11, 13, 28)
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels [N, C * b * b, H, W] -> blocks of pixels [N, C, H * b, W * b]."""
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "CRD":
        return functional.pixel_shuffle(x, b)
    return x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, depth, h * b, w * b)


@register("SpaceToDepth", 1, 13, 28)
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels [N, C, H * b, W * b] -> channels [N, b * b * C, H, W]."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return functional.pixel_unshuffle(x, b)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@register("TopK", 1)
def topk_by_attribute(x: Tensor, *, axis: int = -1, k: int) -> tuple[Tensor, Tensor]:
    """TopK before opset 10: k is an attribute."""
    return _topk(x, k, axis, largest=1)


@register("TopK", 10, 11, 24)
def topk(x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:  # noqa: A002, ARG001
    """The k largest or smallest values along an axis and their indices, in order; of equals the first ones."""
    return _topk(x, ints(k)[0], axis, largest)


def _topk(x: Tensor, k: int, axis: int, largest: int) -> tuple[Tensor, Tensor]:
    # A stable sort, as torch.topk takes equal values in any order.
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)
