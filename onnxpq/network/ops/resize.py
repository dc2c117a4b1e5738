"""Sampling at other places: Resize, Upsample, GridSample, AffineGrid.

Resize is separable: along each axis every output is a weighted sum of a few inputs.
"""
# ruff: noqa: PLR0913 - parameters are ONNX's inputs and attributes: their number is given

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register
from onnxpq.network.ops.tensors import ints


@dataclass(frozen=True)
class _Sampling:
    """How Resize samples an axis; the fields are ONNX's attributes."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    extrapolation: float = 0.0


@dataclass(frozen=True)
class _Axis:
    """One axis: its sizes, the scale between them, and the part that tf_crop_and_resize samples."""

    axis: int
    size: int
    result: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@register("Upsample", 7)
def upsample_by_attribute(x: Tensor, *, mode: str = "nearest", scales: Sequence[float]) -> Tensor:
    """Upsample before opset 9: the scales are an attribute."""
    return _resize(x, _scaled(x, range(x.ndim), scales), _Sampling(mode, "asymmetric", "by_direction"))


@register("Upsample", 9, 10)
def upsample(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """What Resize became: places are output places divided by the scale, rounded down."""
    return upsample_by_attribute(x, mode=mode, scales=scales.tolist())


@register("Resize", 10)
def resize_10(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """Resize-10, which samples as Upsample does."""
    return upsample_by_attribute(x, mode=mode, scales=scales.tolist())


@register("Resize", 11, 13, 18, 19)
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Sample x at a scale, or to given sizes, along all axes or the given ones."""
    chosen = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    if sizes is not None and sizes.numel():
        geometry = _sized(x, chosen, ints(sizes), keep_aspect_ratio_policy)
    elif scales is not None and scales.numel():
        geometry = _scaled(x, chosen, scales.tolist())
    else:
        raise UnsupportedOperatorError("Resize has neither scales nor sizes.")
    if coordinate_transformation_mode == "tf_crop_and_resize" and roi is not None:
        bounds = roi.tolist()
        half = len(chosen)
        geometry = [replace(g, start=bounds[i], end=bounds[i + half]) for i, g in enumerate(geometry)]
    sampling = _Sampling(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(antialias),
        bool(exclude_outside),
        extrapolation_value,
    )
    return _resize(x, geometry, sampling)


def _scaled(x: Tensor, axes: Sequence[int], scales: Sequence[float]) -> list[_Axis]:
    return [
        _Axis(axis, x.shape[axis], math.floor(x.shape[axis] * scale), scale)
        for axis, scale in zip(axes, scales, strict=True)
    ]


def _sized(x: Tensor, axes: Sequence[int], sizes: Sequence[int], policy: str) -> list[_Axis]:
    scales = [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    if policy != "stretch":
        scale = min(scales) if policy == "not_larger" else max(scales)
        return [_Axis(axis, x.shape[axis], math.floor(x.shape[axis] * scale + 0.5), scale) for axis in axes]
    return [_Axis(axis, x.shape[axis], size, s) for axis, size, s in zip(axes, sizes, scales, strict=True)]


def _resize(x: Tensor, geometry: Sequence[_Axis], sampling: _Sampling) -> Tensor:
    outside: list[tuple[int, Tensor]] = []
    y = x
    for axis in geometry:
        crops = sampling.coordinates == "tf_crop_and_resize" and (axis.start, axis.end) != (0.0, 1.0)
        if axis.size == axis.result and axis.scale == 1.0 and not crops:
            continue
        at = _places(axis, sampling.coordinates)
        if sampling.coordinates == "tf_crop_and_resize":
            outside.append((axis.axis, (at < 0) | (at > axis.size - 1)))
        y = _sample(y, axis, at, sampling)
    for dim, mask in outside:
        shape = [-1 if i == dim else 1 for i in range(y.ndim)]
        y = torch.where(mask.reshape(shape).to(y.device), torch.full_like(y, sampling.extrapolation), y)
    return y


def _places(axis: _Axis, coordinates: str) -> Tensor:
    """Where the outputs of an axis lie among its inputs, [result].

    In float32 as in onnxruntime: rounded otherwise, 2.0 may become 1.9999999, and its floor another element.
    """
    if coordinates not in _PLACES:
        raise UnsupportedOperatorError(f"Resize with the coordinate transformation '{coordinates}'.")
    return _PLACES[coordinates](torch.arange(axis.result, dtype=torch.float32), axis)


def _align_corners(i: Tensor, axis: _Axis) -> Tensor:
    return i * (axis.size - 1) / (axis.result - 1) if axis.result > 1 else torch.zeros_like(i)


def _crop(i: Tensor, axis: _Axis) -> Tensor:
    last = axis.size - 1
    if axis.result > 1:
        return axis.start * last + i * (axis.end - axis.start) * last / (axis.result - 1)
    return torch.full_like(i, 0.5 * (axis.start + axis.end) * last)


def _half_pixel(i: Tensor, axis: _Axis) -> Tensor:
    return (i + 0.5) / axis.scale - 0.5


def _symmetric(i: Tensor, axis: _Axis) -> Tensor:
    # The result's size is rounded down; its centre is kept over the centre of x.
    lost = 1 - axis.result / (axis.scale * axis.size)
    return axis.size / 2 * lost + _half_pixel(i, axis)


_PLACES: Final[dict[str, Callable[[Tensor, _Axis], Tensor]]] = {
    "align_corners": _align_corners,
    "asymmetric": lambda i, axis: i / axis.scale,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda i, axis: _half_pixel(i, axis) if axis.result > 1 else torch.zeros_like(i),
    "tf_crop_and_resize": _crop,
    "tf_half_pixel_for_nn": lambda i, axis: (i + 0.5) / axis.scale,
}

_NEAREST: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _sample(x: Tensor, axis: _Axis, at: Tensor, sampling: _Sampling) -> Tensor:
    if sampling.mode == "nearest":
        nearest = sampling.nearest
        if nearest == "by_direction":
            # What onnxruntime does before opset 11, where ONNX did not say.
            nearest = "ceil" if axis.scale < 1 else "floor"
        picks = _NEAREST[nearest](at).clamp(0, axis.size - 1).to(torch.int64)
        return x.index_select(axis.axis, picks.to(x.device))
    taps, weights = _taps(at, axis, sampling)
    inside = (taps >= 0) & (taps < axis.size)
    if sampling.exclude_outside:
        weights = torch.where(inside, weights, torch.zeros_like(weights))
    if sampling.exclude_outside or sampling.antialias:
        weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(len(at), axis.size)
    matrix.scatter_add_(1, taps.clamp(0, axis.size - 1), weights)
    values = x if x.is_floating_point() else x.to(torch.float32)
    y = torch.matmul(values.movedim(axis.axis, -1), matrix.mT.to(values.device, values.dtype)).movedim(-1, axis.axis)
    return y if x.is_floating_point() else torch.round(y).to(x.dtype)


def _taps(at: Tensor, axis: _Axis, sampling: _Sampling) -> tuple[Tensor, Tensor]:
    """The inputs that each output is made of, and their weights; both [result, count]."""
    kernels = {"linear": (1, _triangle), "cubic": (2, _cubic)}
    if sampling.mode not in kernels:
        raise UnsupportedOperatorError(f"Resize in mode '{sampling.mode}'; expected nearest, linear or cubic.")
    radius, kernel = kernels[sampling.mode]
    # Antialiasing widens the kernel so that it spans the inputs between two outputs.
    narrow = min(axis.scale, 1.0) if sampling.antialias else 1.0
    reach = math.ceil(radius / narrow)
    first = torch.floor(at)
    taps = first.unsqueeze(1) + torch.arange(1 - reach, reach + 1)
    return taps.to(torch.int64), kernel((taps - at.unsqueeze(1)) * narrow, sampling.cubic_a)


def _triangle(x: Tensor, _: float) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel: Keys, "Cubic convolution interpolation for digital image processing", 1981."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


@register("GridSample", 16)
def grid_sample_16(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros"
) -> Tensor:
    """GridSample-16: images only, and the modes have other names."""
    return _grid_sample(
        x, grid, {"bilinear": "bilinear", "nearest": "nearest", "bicubic": "bicubic"}[mode], padding_mode, align_corners
    )


@register("GridSample", 20, 22)
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """Sample x [N, C, ...] at the places grid [N, ..., rank], from -1 to 1 along each spatial axis, the last first."""
    names = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
    return _grid_sample(x, grid, names[mode], padding_mode, align_corners)


def _grid_sample(x: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: int) -> Tensor:
    return functional.grid_sample(x, grid, mode, padding_mode, bool(align_corners))


@register("AffineGrid", 20)
def affine_grid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    """The grid for GridSample that an affine map of each sample gives."""
    return functional.affine_grid(theta, ints(size), bool(align_corners))
