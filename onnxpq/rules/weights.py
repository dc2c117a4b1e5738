"""Which constants can be a compressed weight or its bias: the questions that all rules ask."""

from collections.abc import Callable
from dataclasses import dataclass
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


def right_factor(node: ir.Node, context: Context) -> Origin | Skipped:
    """The weight of a node that multiplies its first two inputs, one of which at least is constant.

    Returns:
        The constant float32 matrix that is the second input, or a whole sentence why there is none.
    """
    left, right = (context.origin(required_input(node, index)) for index in (0, 1))
    if right is None:
        name = left.name if left is not None else None
        reason = f"The constant '{name}' is the left factor; only a constant right factor is a layer's weight."
        return Skipped(context.labels[node], node.op_type, name, reason)
    if left is not None:
        reason = f"Both factors, '{left.name}' and '{right.name}', are constant: fold constants first."
        return Skipped(context.labels[node], node.op_type, right.name, reason)
    refusal = next((sentence(right) for applies, sentence in _REFUSALS if applies(right)), None)
    return right if refusal is None else Skipped(context.labels[node], node.op_type, right.name, refusal)


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
            f"The weight '{weight.name}' has type {weight.tensor.dtype.name}; only FLOAT (float32) is supported yet."
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
