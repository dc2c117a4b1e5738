"""Between a weight as the model has it and the matrix [out, in] that is quantized."""

from collections.abc import Sequence

from torch import Tensor


def to_matrix(weight: Tensor, in_features: int, *, is_in_out: bool) -> Tensor:
    """A weight as a matrix [out, in]; the matrices of a stack lie below one another.

    Args:
        weight: [..., in, out] or [..., out, in]; a kernel of one point, [out, in, 1, ...], counts as the latter.
        in_features: `in`.
        is_in_out: which of the two.
    """
    return (weight.mT if is_in_out else weight).reshape(-1, in_features)


def from_matrix(matrix: Tensor, shape: Sequence[int], *, is_in_out: bool) -> Tensor:
    """The inverse of `to_matrix`: the weight of the given shape that a matrix [out, in] is."""
    if not is_in_out:
        return matrix.reshape(*shape)
    return matrix.reshape(*shape[:-2], shape[-1], shape[-2]).mT
