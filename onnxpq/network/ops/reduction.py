"""Reductions along axes."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onnxpq.network.ops.registry import register
from onnxpq.network.ops.tensors import ints

_Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _sum(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.sum(axes, keepdim=keepdim, dtype=x.dtype)


def _mean(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    count = math.prod(x.shape[a] for a in axes)
    total = _sum(x, axes, keepdim)
    return total / count if x.is_floating_point() else torch.div(total, count, rounding_mode="trunc")


def _prod(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdim, dtype=x.dtype)
    return x


def _lowest(dtype: torch.dtype) -> float:
    if dtype is torch.bool:
        return 0
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> float:
    if dtype is torch.bool:
        return 1
    return math.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def _max(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.amax(axes, keepdim=keepdim) if x.numel() else _of_nothing(x, axes, keepdim, _lowest(x.dtype))


def _min(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.amin(axes, keepdim=keepdim) if x.numel() else _of_nothing(x, axes, keepdim, _highest(x.dtype))


def _of_nothing(x: Tensor, axes: tuple[int, ...], keepdim: bool, value: float) -> Tensor:
    # The sum of nothing has the right shape; torch refuses the largest and smallest of nothing.
    return torch.full_like(_sum(x, axes, keepdim), value)


def _l1(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return _sum(x.abs(), axes, keepdim)


def _sum_square(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return _sum(x.square(), axes, keepdim)


def _l2(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    if x.is_floating_point():
        length: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=keepdim)
        return length
    return _sum_square(x, axes, keepdim).to(torch.float64).sqrt().to(x.dtype)


def _log_sum(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return _sum(x, axes, keepdim).log()


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keepdim)


def _register_reduction(
    op_type: str, reduce: _Reduce, attribute_versions: Sequence[int], input_versions: Sequence[int]
) -> None:
    """Register both forms of a reduction: with the axes as an attribute, and as an input in newer opsets."""

    def by_attribute(data: Tensor, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Tensor:
        return _apply(reduce, data, axes, keepdims)

    def by_input(
        data: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        chosen = ints(axes)
        if not chosen and noop_with_empty_axes:
            # Each element is reduced alone, which leaves it alone for the sum but not for the sum of squares.
            return _apply(reduce, data.unsqueeze(-1), [-1], 0)
        return _apply(reduce, data, chosen, keepdims)

    by_attribute.__name__ = by_input.__name__ = op_type.lower()
    register(op_type, *attribute_versions)(by_attribute)
    register(op_type, *input_versions)(by_input)


def _apply(reduce: _Reduce, data: Tensor, axes: Sequence[int] | None, keepdims: int) -> Tensor:
    if data.ndim == 0:
        return reduce(data.reshape(1), (0,), False)
    dims = tuple(a % data.ndim for a in axes) if axes else tuple(range(data.ndim))
    return reduce(data, dims, bool(keepdims))


_register_reduction("ReduceSum", _sum, (1, 11), (13,))
_register_reduction("ReduceMean", _mean, (1, 11, 13), (18,))
_register_reduction("ReduceProd", _prod, (1, 11, 13), (18,))
_register_reduction("ReduceL1", _l1, (1, 11, 13), (18,))
_register_reduction("ReduceL2", _l2, (1, 11, 13), (18,))
_register_reduction("ReduceSumSquare", _sum_square, (1, 11, 13), (18,))
_register_reduction("ReduceMax", _max, (1, 11, 12, 13), (18, 20))
_register_reduction("ReduceMin", _min, (1, 11, 12, 13), (18, 20))
_register_reduction("ReduceLogSum", _log_sum, (1, 11, 13), (18, 28))
_register_reduction("ReduceLogSumExp", _log_sum_exp, (1, 11, 13), (18, 28))


@register("ArgMax", 1, 11, 12, 13)
def argmax(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Index of the largest element, the first or the last of equals."""
    if select_last_index:
        last = data.shape[axis] - 1
        return last - data.flip(axis).argmax(axis, keepdim=bool(keepdims))
    return data.argmax(axis, keepdim=bool(keepdims))


@register("ArgMin", 1, 11, 12, 13)
def argmin(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Index of the smallest element, the first or the last of equals."""
    if select_last_index:
        last = data.shape[axis] - 1
        return last - data.flip(axis).argmin(axis, keepdim=bool(keepdims))
    return data.argmin(axis, keepdim=bool(keepdims))
