"""Integer arithmetic with scales: quantize, dequantize, and products of quantized values.

Rounding has no gradient: what lies before a QuantizeLinear is not trained through it.
"""
# ruff: noqa: ARG001, PLR0913, PLR0917 - parameters are ONNX's inputs and attributes: their number is given

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.conv import conv
from onnxpq.network.ops.registry import register
from onnxpq.network.ops.tensors import torch_dtype

# The network holds uint16 in int32, which QuantizeLinear itself never gives.
_RANGES: dict[torch.dtype, tuple[int, int]] = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int32: (0, 65535),
    torch.int16: (-32768, 32767),
}


@register("QuantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28)
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """round(x / scale) + zero_point, halves to even, cut off at the limits of the integer type."""
    asked = torch_dtype(output_dtype) if output_dtype else torch.uint8
    dtype = asked if zero_point is None else zero_point.dtype
    if dtype not in _RANGES:
        raise UnsupportedOperatorError(f"QuantizeLinear to {dtype} is not supported.")
    y = torch.round(x.to(torch.float32) / _along(scale, x, axis, block_size))
    if zero_point is not None:
        y = y + _along(zero_point, x, axis, block_size)
    return torch.clamp(y, *_RANGES[dtype]).to(dtype)


@register("DequantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28)
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - zero_point) * scale, per tensor, per slice along `axis`, or per block of slices."""
    # In the scale's type, which int32 exceeds, the difference would be rounded before it is small.
    centred = x if zero_point is None else x.to(torch.int64) - _along(zero_point, x, axis, block_size).to(torch.int64)
    return centred.to(scale.dtype) * _along(scale, x, axis, block_size)


@register("DynamicQuantizeLinear", 11)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To uint8 with a scale and a zero point from the values' range, which is widened to hold zero."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(torch.clamp(-low / scale, 0, 255)).to(torch.uint8)
    return quantize_linear(x, scale, zero_point), scale, zero_point


@register("MatMulInteger", 10)
def matmul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """(a - a_zero_point) @ (b - b_zero_point) in int32; zero points per tensor, per row of a, per column of b."""
    rows = a_zero_point.unsqueeze(-1) if a_zero_point is not None and a_zero_point.ndim == 1 else a_zero_point
    return torch.matmul(_centred(a, rows), _centred(b, b_zero_point)).to(torch.int32)


@register("QLinearMatMul", 10, 21)
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    """The product of two quantized matrices, quantized again."""
    a_scale, a_zero_point, y_scale, y_zero_point = (
        value.unsqueeze(-1) if value.ndim == 1 else value for value in (a_scale, a_zero_point, y_scale, y_zero_point)
    )
    product = torch.matmul(_centred(a, a_zero_point), _centred(b, b_zero_point))
    return _requantized(product * (a_scale * b_scale), y_scale, y_zero_point)


@register("ConvInteger", 10)
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Convolution of integers in int32; pads stand for zero points, that is for zero."""
    geometry: dict[str, Any] = {
        "auto_pad": auto_pad,
        "dilations": dilations,
        "group": group,
        "pads": pads,
        "strides": strides,
    }
    return conv(_centred(x, x_zero_point), _centred(w, _per_kernel(w_zero_point, w)), **geometry).to(torch.int32)


@register("QLinearConv", 10)
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Convolution of quantized values, quantized again; the bias is in units of x_scale * w_scale."""
    geometry: dict[str, Any] = {
        "auto_pad": auto_pad,
        "dilations": dilations,
        "group": group,
        "pads": pads,
        "strides": strides,
    }
    bias = None if b is None else b.to(torch.float64)
    y = conv(_centred(x, x_zero_point), _centred(w, _per_kernel(w_zero_point, w)), bias, **geometry)
    factor = x_scale * w_scale
    factor = factor.reshape(-1, *[1] * (y.ndim - 2)) if factor.numel() > 1 else factor.reshape(())
    return _requantized(y * factor, y_scale, y_zero_point)


def _centred(x: Tensor, zero_point: Tensor | None) -> Tensor:
    """In float64, in which torch multiplies matrices and sums of int32 are exact."""
    values = x.to(torch.float64)
    return values if zero_point is None else values - zero_point.to(torch.float64)


def _requantized(y: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    if zero_point.dtype not in _RANGES:
        raise UnsupportedOperatorError(f"Quantized results of type {zero_point.dtype} are not supported.")
    return torch.clamp(torch.round(y / scale) + zero_point, *_RANGES[zero_point.dtype]).to(zero_point.dtype)


def _per_kernel(value: Tensor | None, w: Tensor) -> Tensor | None:
    return value if value is None or value.numel() == 1 else value.reshape(-1, *[1] * (w.ndim - 1))


def _along(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point in a shape that broadcasts with x."""
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    if parameter.numel() == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    if parameter.ndim > 1:
        return parameter
    return parameter.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
