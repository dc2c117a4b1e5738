"""Convolution and pooling, in 1 to 3 spatial dimensions.

Letters: N batch, C channels, then the spatial dimensions. Pads are ONNX's: first all beginnings, then all ends.
"""
# ruff: noqa: PLR0913 - parameters are ONNX's attributes: their number is given

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register

_F = TypeVar("_F", bound=Callable[..., Any])

_CONV: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    1: functional.max_pool1d_with_indices,
    2: functional.max_pool2d_with_indices,
    3: functional.max_pool3d_with_indices,
}
_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}


@register("Conv", 1, 11, 22)
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,  # noqa: ARG001 - the weight has it too
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Convolution of x [N, C, ...] with w [out, C / group, kernel...]."""
    window = _Window(x, list(w.shape[2:]), strides, dilations, pads, auto_pad)
    x, padding = window.pad_for_convolution(x)
    run = _of_rank(_CONV, window.rank, "Conv")
    return run(x, w, b, stride=window.strides, padding=padding, dilation=window.dilations, groups=group)


@register("ConvTranspose", 1, 11, 22)
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,  # noqa: ARG001 - the weight has it too
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Gradient of a convolution: x [N, C, ...], w [C, out / group, kernel...].

    The result is computed without pads, then cut: that serves asymmetric pads and a given output shape alike.
    """
    kernel = list(w.shape[2:])
    rank = len(kernel)
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    full = [
        s * (n - 1) + (k - 1) * d + 1 + e
        for n, k, s, d, e in zip(x.shape[2:], kernel, stride, dilation, extra, strict=True)
    ]
    cut = _transposed_cut(x, full, stride, auto_pad, pads, output_shape)
    run = _of_rank(_CONV_TRANSPOSE, rank, "ConvTranspose")
    y = run(x, w, None, stride=stride, dilation=dilation, groups=group)
    # Negative padding cuts. What output_padding asks for beyond the sum itself is zeros.
    widths = [p for i in reversed(range(rank)) for p in (-cut[i], extra[i] - cut[i + rank])]
    y = functional.pad(y, widths) if any(widths) else y
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@register("MaxPool", 1, 8, 10, 11, 12, 22)
def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    n_outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """Largest value of each window and, as second output, where it stands in x laid out flat."""
    window = _Window(x, list(kernel_shape), strides, dilations, pads, auto_pad, ceil_mode)
    values = x if x.is_floating_point() else x.to(torch.float32)
    padded = functional.pad(values, window.both_pads(), value=-math.inf) if window.needs_padding() else values
    pool = _of_rank(_MAX_POOL, window.rank, "MaxPool")
    y, at = pool(padded, window.kernel, window.strides, 0, window.dilations)
    y = y.to(x.dtype)
    if n_outputs == 1:
        return y
    return y, _indices_in_unpadded(at, list(padded.shape[2:]), list(x.shape), window.pads, column_major=storage_order)


@register("AveragePool", 7, 10, 11, 19, 22)
def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Mean of each window; what lies outside of x counts only if it is padding and `count_include_pad` is set."""
    window = _Window(x, list(kernel_shape), strides, dilations, pads, auto_pad, ceil_mode)
    if not window.needs_padding():
        return _window_means(x, window)
    sums = _window_means(functional.pad(x, window.both_pads()), window)
    inside = x.new_ones((1, 1, *x.shape[2:]))
    counts = functional.pad(inside, window.torch_pads(window.pads), value=float(count_include_pad))
    return sums / _window_means(functional.pad(counts, window.torch_pads(window.overhang)), window)


@register("LpPool", 2, 11, 18, 22)
def lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The p-norm of each window; padding is zero."""
    window = _Window(x, list(kernel_shape), strides, dilations, pads, auto_pad, ceil_mode)
    powers = functional.pad(x.abs() ** p, window.both_pads())
    return (_window_means(powers, window) * math.prod(window.kernel)) ** (1 / p)


@register("GlobalLpPool", 2, 22)
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm over all spatial dimensions, which stay with size 1."""
    axes = tuple(range(2, x.ndim))
    return (x.abs() ** p).sum(dim=axes, keepdim=True) ** (1 / p)


@register("CausalConvWithState", 27)
def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    *,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """Each channel of x [N, C, T] with its kernel [C, 1, k], over the past only; and the last k - 1 positions."""
    kernel = weight.shape[-1]
    before = x.new_zeros(*x.shape[:2], kernel - 1) if past is None else past
    whole = torch.cat([before, x], -1)
    y = functional.conv1d(whole, weight, bias, groups=x.shape[1])
    if activation in ("silu", "swish"):
        y = functional.silu(y)
    elif activation != "none":
        raise UnsupportedOperatorError(f"CausalConvWithState with activation '{activation}'; expected none or silu.")
    return y, whole[..., whole.shape[-1] - kernel + 1 :]


@register("GlobalAveragePool", 1, 22)
def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all spatial dimensions, which stay with size 1."""
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


@register("GlobalMaxPool", 1, 22)
def global_max_pool(x: Tensor) -> Tensor:
    """Largest value over all spatial dimensions, which stay with size 1."""
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


class _Window:
    """Geometry of a sliding window: every attribute filled in, one number per spatial dimension.

    Attributes:
        pads: what ONNX calls pads, resolved from auto_pad; 2 * rank numbers.
        overhang: what ceil_mode adds after the end, in the form of pads.
    """

    def __init__(
        self,
        x: Tensor,
        kernel: list[int],
        strides: Sequence[int] | None,
        dilations: Sequence[int] | None,
        pads: Sequence[int] | None,
        auto_pad: str,
        ceil_mode: int = 0,
    ) -> None:
        self.rank = len(kernel)
        self.kernel = kernel
        self.strides = list(strides or [1] * self.rank)
        self.dilations = list(dilations or [1] * self.rank)
        self.size = list(x.shape[2:])
        self.extent = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        self.pads = list(pads or [0] * 2 * self.rank) if auto_pad == "NOTSET" else self._automatic_pads(auto_pad)
        self.overhang = [0] * self.rank + (
            [self._overhang(i) for i in range(self.rank)] if ceil_mode else [0] * self.rank
        )

    def _automatic_pads(self, auto_pad: str) -> list[int]:
        if auto_pad == "VALID":
            return [0] * 2 * self.rank
        geometry = zip(self.size, self.extent, self.strides, strict=True)
        total = [max((math.ceil(n / s) - 1) * s + e - n, 0) for n, e, s in geometry]
        half = [t // 2 for t in total]
        rest = [t - h for t, h in zip(total, half, strict=True)]
        return half + rest if auto_pad == "SAME_UPPER" else rest + half

    def _overhang(self, i: int) -> int:
        begin, end = self.pads[i], self.pads[i + self.rank]
        n, e, s = self.size[i], self.extent[i], self.strides[i]
        steps = math.ceil((n + begin + end - e) / s)
        # A window that would start past x and its first padding is dropped, as ONNX says since opset 19.
        steps -= steps * s >= n + begin
        return max(steps * s + e - (n + begin + end), 0)

    def torch_pads(self, pads: Sequence[int]) -> list[int]:
        """Pads as torch wants them: last dimension first, beginning and end beside each other."""
        return [p for i in reversed(range(self.rank)) for p in (pads[i], pads[i + self.rank])]

    def both_pads(self) -> list[int]:
        return self.torch_pads([p + o for p, o in zip(self.pads, self.overhang, strict=True)])

    def needs_padding(self) -> bool:
        return any(self.pads) or any(self.overhang)

    def pad_for_convolution(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """Leave symmetric pads to the convolution, which takes them for nothing; apply others to x."""
        begins, ends = self.pads[: self.rank], self.pads[self.rank :]
        if begins == ends and min(begins, default=0) >= 0:
            return x, begins
        return functional.pad(x, self.torch_pads(self.pads)), [0] * self.rank


def _window_means(x: Tensor, window: _Window) -> Tensor:
    """Means over windows of x, which is padded already."""
    if all(d == 1 for d in window.dilations):
        return _of_rank(_AVERAGE_POOL, window.rank, "AveragePool")(x, window.kernel, window.strides)
    channels = x.shape[1]
    mean = x.new_full((channels, 1, *window.kernel), 1 / math.prod(window.kernel))
    run = _of_rank(_CONV, window.rank, "AveragePool")
    return run(x, mean, stride=window.strides, dilation=window.dilations, groups=channels)


def _indices_in_unpadded(
    at: Tensor, padded: list[int], shape: list[int], pads: Sequence[int], *, column_major: int
) -> Tensor:
    """Positions in the padded plane -> positions in the whole of x [N, C, ...], laid out flat."""
    sizes = shape[2:]
    places: list[Tensor] = []
    for size, begin in zip(reversed(padded), reversed(pads[: len(sizes)]), strict=True):
        places.insert(0, at % size - begin)
        at = at // size
    order = list(range(len(sizes)))
    flat = torch.zeros_like(at)
    for i in reversed(order) if column_major else order:
        flat = flat * sizes[i] + places[i]
    planes = torch.arange(shape[0] * shape[1], device=at.device) * math.prod(sizes)
    return flat + planes.reshape(shape[0], shape[1], *[1] * len(sizes))


def _transposed_cut(
    x: Tensor,
    full: list[int],
    strides: list[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> list[int]:
    """What to cut from a transposed convolution's full result, in the form of pads; a wanted shape overrules pads."""
    rank = len(full)
    if output_shape is None and not auto_pad.startswith("SAME"):
        return list(pads or [0] * 2 * rank) if auto_pad == "NOTSET" else [0] * 2 * rank
    wanted = list(output_shape or [n * s for n, s in zip(x.shape[2:], strides, strict=True)])[-rank:]
    total = [f - n for f, n in zip(full, wanted, strict=True)]
    half = [t // 2 for t in total]
    rest = [t - h for t, h in zip(total, half, strict=True)]
    return half + rest if auto_pad == "SAME_UPPER" else rest + half


def _of_rank(functions: dict[int, _F], rank: int, op_type: str) -> _F:
    if rank not in functions:
        raise UnsupportedOperatorError(f"{op_type} over {rank} spatial dimensions; 1, 2 and 3 are supported.")
    return functions[rank]
