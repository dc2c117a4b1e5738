"""Arithmetic, comparison and logic, element by element; matrix products."""
# ruff: noqa: A002, N803 - parameters are ONNX's attributes: their names and their number are given

import functools
import operator
from typing import Any

import torch
from torch import Tensor

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import Handler, register
from onnxpq.network.ops.tensors import ints, is_float


def _unary(fn: Handler, name: str) -> Handler:
    def handler(x: Tensor) -> Any:
        return fn(x)

    handler.__name__ = name
    return handler


def _binary(fn: Handler, name: str) -> Handler:
    def handler(a: Tensor, b: Tensor) -> Any:
        return fn(a, b)

    handler.__name__ = name
    return handler


_UNARY: tuple[tuple[str, tuple[int, ...], Handler], ...] = (
    ("Abs", (6, 13), torch.abs),
    ("Acos", (7, 22), torch.acos),
    ("Acosh", (9, 22), torch.acosh),
    ("Asin", (7, 22), torch.asin),
    ("Asinh", (9, 22), torch.asinh),
    ("Atan", (7, 22), torch.atan),
    ("Atanh", (9, 22), torch.atanh),
    ("Ceil", (6, 13), torch.ceil),
    ("Cos", (7, 22), torch.cos),
    ("Cosh", (9, 22), torch.cosh),
    ("Det", (11, 22), torch.linalg.det),
    ("Erf", (9, 13), torch.erf),
    ("Exp", (6, 13), torch.exp),
    ("Floor", (6, 13), torch.floor),
    ("IsNaN", (9, 13, 20), torch.isnan),
    ("Log", (6, 13), torch.log),
    ("Neg", (6, 13), torch.neg),
    ("Not", (1,), torch.logical_not),
    ("Reciprocal", (6, 13), torch.reciprocal),
    ("Round", (11, 22), torch.round),  # both round halves to even
    ("Sign", (9, 13), torch.sign),
    ("Sin", (7, 22), torch.sin),
    ("Sinh", (9, 22), torch.sinh),
    ("Sqrt", (6, 13), torch.sqrt),
    ("Tan", (7, 22), torch.tan),
)
_BINARY: tuple[tuple[str, tuple[int, ...], Handler], ...] = (
    ("Add", (7, 13, 14), torch.add),
    ("And", (7,), torch.logical_and),
    ("Equal", (7, 11, 13), torch.eq),
    ("Greater", (7, 9, 13), torch.gt),
    ("GreaterOrEqual", (12, 16), torch.ge),
    ("Less", (7, 9, 13), torch.lt),
    ("LessOrEqual", (12, 16), torch.le),
    ("MatMul", (1, 9, 13), torch.matmul),
    ("Mul", (7, 13, 14), torch.mul),
    ("Or", (7,), torch.logical_or),
    ("Sub", (7, 13, 14), torch.sub),
    ("Xor", (7,), torch.logical_xor),
)
for _op_type, _versions, _fn in _UNARY:
    register(_op_type, *_versions)(_unary(_fn, _op_type.lower()))
for _op_type, _versions, _fn in _BINARY:
    register(_op_type, *_versions)(_binary(_fn, _op_type.lower()))


@register("Equal", 19)
def equal(a: Any, b: Any) -> Tensor:
    """Equal-19, which compares strings too."""
    return torch.eq(a, b) if isinstance(a, Tensor) else torch.from_numpy(a == b)


@register("Div", 7, 13, 14)
def div(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided as in C: truncated towards zero."""
    return torch.div(a, b) if is_float(a) else torch.div(a, b, rounding_mode="trunc")


@register("Mod", 10, 13, 28)
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder has the sign of `b` as in Python, with `fmod` that of `a` as in C."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@register("Pow", 7, 12, 13, 15)
def power(x: Tensor, y: Tensor) -> Tensor:
    """The result has the type of `x`, whatever that of the exponent."""
    return torch.pow(x, y).to(x.dtype)


@register("Max", 6, 8, 12, 13)
def maximum(*data: Tensor) -> Tensor:
    """Largest of all inputs, broadcast against each other."""
    return functools.reduce(torch.maximum, data)


@register("Min", 6, 8, 12, 13)
def minimum(*data: Tensor) -> Tensor:
    """Smallest of all inputs, broadcast against each other."""
    return functools.reduce(torch.minimum, data)


@register("Sum", 6, 8, 13)
def total(*data: Tensor) -> Tensor:
    """Sum of all inputs, broadcast against each other."""
    return functools.reduce(operator.add, data)


@register("Mean", 6, 8, 13)
def mean(*data: Tensor) -> Tensor:
    """Mean of all inputs, broadcast against each other."""
    return total(*data) / len(data)


@register("Gemm", 7, 9, 11, 13)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """``alpha * a' @ b' + beta * c`` with a' [rows, in] and b' [in, out] transposed where asked for."""
    y = torch.matmul(a.mT if transA else a, b.mT if transB else b)
    # Factors of one are left out: they cost a pass over y, and integers may not be multiplied by a float.
    y = y if alpha == 1.0 else alpha * y
    if c is None:
        return y
    return y + (c if beta == 1.0 else beta * c)


@register("Clip", 6)
def clip_by_attributes(x: Tensor, *, min: float = -3.4028234663852886e38, max: float = 3.4028234663852886e38) -> Tensor:
    """Clip-6: the limits are attributes."""
    return torch.clamp(x, min, max)


@register("Clip", 11, 12, 13)
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """If the limits cross, the upper one wins."""
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@register("IsInf", 10, 20)
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Infinities of the chosen signs."""
    negative = torch.isneginf(x) if detect_negative else torch.zeros_like(x, dtype=torch.bool)
    return torch.logical_or(negative, torch.isposinf(x)) if detect_positive else negative


@register("Where", 9, 16)
def where(condition: Tensor, x: Any, y: Any) -> Tensor:
    """`x` where the condition holds, else `y`; all three are broadcast."""
    if not isinstance(x, Tensor):
        raise UnsupportedOperatorError("Where on strings is not supported.")
    return torch.where(condition, x, y)


@register("CumSum", 11, 14)
def cumsum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum along one axis; `exclusive` leaves out the element itself, `reverse` starts at the end."""
    dim = ints(axis)[0]
    x = x.flip(dim) if reverse else x
    y = x.cumsum(dim, dtype=x.dtype)
    y = y - x if exclusive else y
    return y.flip(dim) if reverse else y


@register("CumProd", 26)
def cumprod(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running product along one axis; `exclusive` leaves out the element itself, `reverse` starts at the end."""
    dim = ints(axis)[0]
    x = x.flip(dim) if reverse else x
    if exclusive:
        # Not a division, which zeros would spoil.
        x = torch.cat([torch.ones_like(x.narrow(dim, 0, 1)), x.narrow(dim, 0, x.shape[dim] - 1)], dim)
    y = x.cumprod(dim, dtype=x.dtype)
    return y.flip(dim) if reverse else y


@register("Einsum", 12, 28)
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    """Sum of products by index names."""
    return torch.einsum(equation.replace(" ", ""), *inputs)
