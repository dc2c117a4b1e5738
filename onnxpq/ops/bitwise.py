"""Operations on the bits of integers.

The network holds unsigned integers of more than 8 bits in wider signed ones: bits shifted out of these stay.
"""

import torch
from torch import Tensor

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.ops.registry import register


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
def bitwise_not(x: Tensor) -> Tensor:
    """All bits reversed; of signed integers and uint8, as others are not held in their own type."""
    return torch.bitwise_not(x)


@register("BitShift", 11, 28)
def bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    """X shifted by y bits, direction LEFT or RIGHT."""
    if direction == "LEFT":
        return torch.bitwise_left_shift(x, y)
    if direction == "RIGHT":
        return torch.bitwise_right_shift(x, y)
    raise UnsupportedOperatorError(f"BitShift in direction '{direction}'; expected LEFT or RIGHT.")
