"""Operations on the bits of integers.

The network holds unsigned integers of more than 8 bits in wider signed ones, whose further bits have to stay zero: the
type that the model has tells how many there are.
"""

from typing import Final

import onnx_ir as ir
import torch
from torch import Tensor

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register

_BITS: Final = {ir.DataType.UINT16: 16, ir.DataType.UINT32: 32}
"""The types that are held in wider ones. (uint64 is held in int64, which has as many bits.)"""


@register("BitwiseAnd", 18)
def bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    """Bits set in both."""
    return torch.bitwise_and(a, b)


@register("BitwiseOr", 18)
def bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    """Bits set in either."""
    return torch.bitwise_or(a, b)


@register("BitwiseXor", 18)
def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    """Bits set in one of the two."""
    return torch.bitwise_xor(a, b)


@register("BitwiseNot", 18)
def bitwise_not(x: Tensor, *, input_type: int | None = None) -> Tensor:
    """All bits reversed."""
    return _cut_off(torch.bitwise_not(x), input_type)


@register("BitShift", 11, 28)
def bit_shift(x: Tensor, y: Tensor, *, direction: str, input_type: int | None = None) -> Tensor:
    """X shifted by y bits, direction LEFT or RIGHT."""
    if direction == "LEFT":
        return _cut_off(torch.bitwise_left_shift(x, y), input_type)
    if direction == "RIGHT":
        return torch.bitwise_right_shift(x, y)
    raise UnsupportedOperatorError(f"BitShift in direction '{direction}'; expected LEFT or RIGHT.")


def _cut_off(x: Tensor, input_type: int | None) -> Tensor:
    """Without the bits that the model's type does not have."""
    bits = None if input_type is None else _BITS.get(ir.DataType(input_type))
    return x if bits is None else x & (2**bits - 1)
