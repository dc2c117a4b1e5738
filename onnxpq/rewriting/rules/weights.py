"""Which constants can be a compressed weight or its bias: the questions that all rules ask."""

from dataclasses import dataclass, replace
from math import prod
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.errors import ModelError
from onnxpq.graph import FLOATS, Layer, Skipped, element_type, is_standard, matrix_base, shape_of
from onnxpq.rewriting.rules.context import Context, Origin
from onnxpq.support.kinds import FULLY_CONNECTED

_DEQUANTIZERS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})

QUANTIZED: Final = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4})
"""The types that quantized weights are stored in."""

STORED_BIASES: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
"""The types of bias that PQMatMul takes."""


@dataclass(frozen=True)
class ConstantBias:
    """A constant that adds the same to every row.

    Attributes:
        source: the constant in the model.
        row: [out] float32, with its factor.
        is_source: `source` is an initializer that holds exactly `row`.
    """

    source: ir.Value
    row: NDArray[np.float32]
    is_source: bool


@dataclass(frozen=True)
class Weight:
    """The constant matrix, or stack of matrices, that a node multiplies by.

    Attributes:
        name: of the constant: an initializer, the output of a Constant node, or a value that is cut out of one.
        shape: as the node gets it.
        is_transposed: the node gets the transpose of what the constant holds.
        dtype: as the node gets it, which is the type that it computes in.
        nbytes: in the model's type.
    """

    name: str
    shape: tuple[int, ...]
    is_transposed: bool
    dtype: ir.DataType
    nbytes: int


def is_operator(node: ir.Node, op_type: str) -> bool:
    """Whether the node is ai.onnx's operator `op_type`."""
    return is_standard(node, op_type)


def required_input(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator's schema requires.

    Raises:
        ModelError: the node does not have it.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ModelError(f"Node '{node.name}' ({node.op_type}) lacks its required input {index}.")
    return value


def factors(node: ir.Node, context: Context) -> tuple[Origin | None, Origin | None]:
    """Where the two factors of a product come from, so far as they are constant."""
    left, right = (context.origin(required_input(node, index)) for index in (0, 1))
    return left, right


def constant_rank(value: ir.Value | None) -> int | None:
    """Rank of a constant that is seen through what `rearranges`; None for what is none."""
    shape = shape_of(value)
    return None if shape is None else len(shape)


def right_factor(node: ir.Node, context: Context) -> Weight | Skipped:
    """The weight of a node that multiplies its first two inputs, one of which at least is constant.

    Returns:
        The constant that is the second input; or a whole sentence why there is none.
    """
    left, right = factors(node, context)
    if right is None:
        name = left.name if left is not None else None
        reason = f"The constant '{name}' is the left factor; only a constant right factor is a layer's weight."
        return Skipped(context.labels[node], node.op_type, name, reason)
    return weight_of(node, 1, context, other=left)


def weight_of(node: ir.Node, index: int, context: Context, *, other: Origin | None = None) -> Weight | Skipped:
    """The weight that is an input of a node.

    Args:
        node: the node.
        index: of the input, which is constant.
        context: of the model.
        other: where the other factor comes from, if it is constant too.

    Returns:
        The constant, maybe cut out of a larger one; or a whole sentence why it is no weight.
    """
    value = required_input(node, index)
    origin = context.origins[value]
    shape, dtype = shape_of(value), element_type(value)
    reason = _refusal(origin, shape, dtype, other)
    if reason is not None or shape is None or dtype is None:
        return Skipped(context.labels[node], node.op_type, origin.name, reason or "")
    base, is_transposed = matrix_base(value)
    stored = element_type(base) or dtype
    return Weight(base.name or "", shape, is_transposed, dtype, int(prod(shape) * stored.itemsize))


def matrix_layer(node: ir.Node, context: Context, weight: Weight, *, is_in_out: bool, bias: str | None) -> Layer:
    """The layer of a node and its weight.

    Args:
        node: the node.
        context: of the model.
        weight: what the node gets is [..., in, out] or [..., out, in]; matrices of a stack lie below one another.
        is_in_out: which of the two.
        bias: name of the constant bias.
    """
    *stack, rows, columns = weight.shape
    out_features, in_features = (columns, rows) if is_in_out else (rows, columns)
    layer = rows_layer(node, context, weight.name, prod(stack) * out_features, in_features, weight.nbytes)
    return replace(layer, weight_is_in_out=is_in_out != weight.is_transposed, bias=bias)


def rows_layer(
    node: ir.Node, context: Context, weight: str, rows: int, columns: int, nbytes: int, *, kind: str = FULLY_CONNECTED
) -> Layer:
    """The layer of a node whose constant has its rows, the outputs, along the first axes.

    Args:
        node: the node.
        context: of the model.
        weight: name of the constant.
        rows: `out`.
        columns: `in`.
        nbytes: of the constant in the model's type.
        kind: of the weight (`onnxpq.support.kinds`).
    """
    return Layer(
        node=context.labels[node],
        op_type=node.op_type,
        weight=weight,
        out_features=rows,
        in_features=columns,
        weight_is_in_out=False,
        bias=None,
        weight_bytes=nbytes,
        place=context.place(node),
        kind=kind,
    )


def constant_bias(
    value: ir.Value | None, context: Context, out_features: int, *, factor: float = 1.0
) -> ConstantBias | None:
    """``factor * value``, where `value` is a constant that is equal for all rows: shape (), or [1, ..., 1 or out]."""
    tensor = context.constant(value)
    if value is None or tensor is None or tensor.dtype not in FLOATS:
        return None
    *ones, last = tensor.shape.numpy() or (1,)
    if any(size != 1 for size in ones) or last not in (1, out_features):
        return None
    row = np.float32(factor) * np.broadcast_to(tensor.numpy().reshape(-1).astype(np.float32), (out_features,))
    is_whole = tensor.dtype in STORED_BIASES and factor == 1.0 and tensor.shape.numpy() == (out_features,)
    return ConstantBias(value, row, value.is_initializer() and is_whole)


def _refusal(
    origin: Origin, shape: tuple[int, ...] | None, dtype: ir.DataType | None, other: Origin | None
) -> str | None:
    """When a constant factor cannot be compressed, the sentence that says so."""
    if other is not None:
        return f"Both factors, '{other.name}' and '{origin.name}', are constant: fold constants first."
    stored = origin.tensor.dtype
    if _DEQUANTIZERS.intersection(origin.steps) or (stored in QUANTIZED and dtype != stored):
        return f"The weight '{origin.name}' is quantized already ({stored.name}); pass the model as it was before."
    if origin.is_overridable:
        return (
            f"The weight '{origin.name}' is a graph input too, so that a caller may replace it; remove it from the "
            "inputs if nobody does."
        )
    if shape is None:
        return (
            f"The weight '{origin.name}' reaches the node through {', '.join(origin.steps)}, which computes other "
            "numbers; fold constants first (onnxruntime's basic optimization does)."
        )
    if dtype not in FLOATS:
        return f"The weight '{origin.name}' has type {stored.name}; only floating-point weights are compressed."
    return f"The weight '{origin.name}' is empty: its shape is {list(shape)}." if 0 in shape else None
