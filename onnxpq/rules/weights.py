"""Which constants can be a compressed weight or its bias: the questions that all rules ask."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.errors import ModelError
from onnxpq.layers import Skipped
from onnxpq.rules.context import Context, Origin

_DEQUANTIZERS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})


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
    """The constant float32 matrix that a node multiplies by, as the model stores it and as the node gets it.

    Attributes:
        origin: the constant.
        is_transposed: the node gets its transpose.
    """

    origin: Origin
    is_transposed: bool

    @property
    def name(self) -> str:
        """Name of the constant."""
        return self.origin.name

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as the node gets them."""
        rows, columns = self.origin.tensor.shape.numpy()
        return (columns, rows) if self.is_transposed else (rows, columns)


def is_operator(node: ir.Node, op_type: str) -> bool:
    """Whether the node is ai.onnx's operator `op_type`."""
    return node.domain in ("", "ai.onnx") and node.op_type == op_type


def required_input(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator's schema requires.

    Raises:
        ModelError: the node does not have it.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ModelError(f"Node '{node.name}' ({node.op_type}) lacks its required input {index}.")
    return value


def is_view(node: ir.Node) -> bool:
    """Whether the node passes a matrix on as it is, or transposed: Identity, Transpose, Cast to float32."""
    if is_operator(node, "Transpose"):
        return list(node.attributes.get_ints("perm", [1, 0])) in ([1, 0], [0, 1])
    return is_operator(node, "Identity") or (
        is_operator(node, "Cast") and node.attributes.get_int("to", 0) == ir.DataType.FLOAT
    )


def _is_transposed(value: ir.Value) -> bool | None:
    """Whether the views between a constant matrix and `value` transpose it; None where others than views are there."""
    node, transposed = value.producer(), False
    while node is not None and not is_operator(node, "Constant"):
        source = node.inputs[0]
        if source is None or not is_view(node):
            return None
        if is_operator(node, "Transpose"):
            transposed ^= list(node.attributes.get_ints("perm", [1, 0])) == [1, 0]
        node = source.producer()
    return transposed


def right_factor(node: ir.Node, context: Context) -> Weight | Skipped:
    """The weight of a node that multiplies its first two inputs, one of which at least is constant.

    Returns:
        The constant float32 matrix that is the second input, maybe through `is_view` nodes; or a whole sentence why
        there is none.
    """
    left, right = (context.origin(required_input(node, index)) for index in (0, 1))
    if right is None:
        name = left.name if left is not None else None
        reason = f"The constant '{name}' is the left factor; only a constant right factor is a layer's weight."
        return Skipped(context.labels[node], node.op_type, name, reason)
    if left is not None:
        reason = f"Both factors, '{left.name}' and '{right.name}', are constant: fold constants first."
        return Skipped(context.labels[node], node.op_type, right.name, reason)
    transposed = _is_transposed(required_input(node, 1))
    seen = right if transposed is None else replace(right, steps=())
    refusal = next((sentence(seen) for applies, sentence in _REFUSALS if applies(seen)), None)
    return (
        Weight(seen, bool(transposed))
        if refusal is None
        else Skipped(context.labels[node], node.op_type, right.name, refusal)
    )


def constant_bias(
    value: ir.Value | None, context: Context, out_features: int, *, factor: float = 1.0
) -> ConstantBias | None:
    """``factor * value``, where `value` is a constant that is equal for all rows: shape (), or [1, ..., 1 or out]."""
    tensor = context.constant(value)
    if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    *ones, last = tensor.shape.numpy() or (1,)
    if any(size != 1 for size in ones) or last not in (1, out_features):
        return None
    row = np.float32(factor) * np.broadcast_to(tensor.numpy().reshape(-1), (out_features,))
    is_source = value.is_initializer() and factor == 1.0 and tensor.shape.numpy() == (out_features,)
    return ConstantBias(value, row, is_source)


_REFUSALS: Final[tuple[tuple[Callable[[Origin], bool], Callable[[Origin], str]], ...]] = (
    (
        lambda weight: bool(_DEQUANTIZERS.intersection(weight.steps)),
        lambda weight: (
            f"The weight '{weight.name}' is quantized already ({weight.tensor.dtype.name}); pass the model as it was "
            "before."
        ),
    ),
    (
        lambda weight: weight.is_overridable,
        lambda weight: (
            f"The weight '{weight.name}' is a graph input too, so that a caller may replace it; remove it from the "
            "inputs if nobody does."
        ),
    ),
    (
        lambda weight: bool(weight.steps),
        lambda weight: (
            f"The weight '{weight.name}' reaches the node through {', '.join(weight.steps)}, which is not supported "
            "yet; fold constants first (onnxruntime's basic optimization does)."
        ),
    ),
    (
        lambda weight: weight.tensor.dtype != ir.DataType.FLOAT,
        lambda weight: (
            f"The weight '{weight.name}' has type {weight.tensor.dtype.name}; the operator that would replace its node "
            "computes in FLOAT (float32) only. Export the model in float32."
        ),
    ),
    (
        lambda weight: len(weight.tensor.shape) != 2,
        lambda weight: (
            f"The weight '{weight.name}' has shape {list(weight.tensor.shape.numpy())}; only matrices, of two "
            "dimensions, are supported yet."
        ),
    ),
    (
        lambda weight: 0 in weight.tensor.shape.numpy(),
        lambda weight: f"The weight '{weight.name}' is empty: its shape is {list(weight.tensor.shape.numpy())}.",
    ),
)
"""When a constant right factor cannot be compressed, and the sentence that says so; the first that applies counts."""
