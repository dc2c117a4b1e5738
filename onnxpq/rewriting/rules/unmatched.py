"""Nodes with large constants that no rule takes, each with its reason: nothing is left out of the report silently."""

from math import prod
from typing import Final

import onnx_ir as ir

from onnxpq.graph import FLOATS, Skipped
from onnxpq.operators import DOMAIN, INPUTS_OF, OP_TYPES
from onnxpq.rewriting.rules.context import Context, Origin
from onnxpq.rewriting.rules.weights import QUANTIZED

LARGE_CONSTANT: Final = 4096
"""Constants of at least so many elements are mentioned."""

_WEIGHT_TYPES = FLOATS | QUANTIZED

_REASONS = {
    "Gather": "The constant '{name}' is looked up by index and is no matrix; only rows of a matrix are compressed",
}
_OTHER = "The constant '{name}' is not the weight of a fully-connected layer that onnxpq knows"


def explain(node: ir.Node, context: Context, model: ir.Model) -> Skipped | None:
    """Why a node that no rule matches keeps its large constant; None where it has none."""
    label = context.labels[node]
    if node.domain == DOMAIN and node.op_type in OP_TYPES:
        index = INPUTS_OF[node.op_type].index("codes")
        codes = node.inputs[index] if len(node.inputs) > index else None
        return Skipped(label, node.op_type, codes.name if codes else None, "It is compressed already.")
    origin = _large_constant(node, context)
    if origin is None:
        return None
    if node.op_identifier() in model.functions:
        text = "It calls a local function with the constant '{name}', in which there is no fully-connected layer"
    elif origin.tensor.dtype in QUANTIZED:
        text = "The constant '{name}' is quantized already"
    else:
        text = _REASONS.get(node.op_type, _OTHER)
    return Skipped(label, node.op_type, origin.name, f"{text.format(name=origin.name)}.")


def _large_constant(node: ir.Node, context: Context) -> Origin | None:
    """The largest constant among the inputs of a node that is not constant itself, if it is large."""
    if any(context.origin(value) is not None for value in node.outputs):
        return None
    origins = [origin for origin in map(context.origin, node.inputs) if origin is not None]
    large = [o for o in origins if o.tensor.dtype in _WEIGHT_TYPES and _elements(o) >= LARGE_CONSTANT]
    return max(large, key=_elements, default=None)


def _elements(origin: Origin) -> int:
    return prod(origin.tensor.shape.numpy())
