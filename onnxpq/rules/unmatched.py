"""Nodes with large constants that no rule takes, each with its reason: nothing is left out of the report silently."""

from collections.abc import Iterator
from math import prod
from typing import Final

import onnx_ir as ir

from onnxpq.layers import Skipped
from onnxpq.opschema import DOMAIN, INPUTS, OP_TYPE
from onnxpq.rules.context import Context, Origin

LARGE_CONSTANT: Final = 4096
"""Constants of at least so many elements are mentioned."""

_WEIGHT_TYPES = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE),
        *(ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4),
    }
)
_QUANTIZED_TYPES = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4})

_REASONS = {
    "Conv": "its constant '{name}' is a convolution kernel; only fully-connected layers are compressed",
    "ConvTranspose": "its constant '{name}' is a convolution kernel; only fully-connected layers are compressed",
    "Gather": "its constant '{name}' is looked up by index, as an embedding is, not multiplied",
    "LSTM": "its constant '{name}' is the weight of a recurrent layer, which is not supported yet",
    "GRU": "its constant '{name}' is the weight of a recurrent layer, which is not supported yet",
    "RNN": "its constant '{name}' is the weight of a recurrent layer, which is not supported yet",
}
_OTHER = "its constant '{name}' is not the weight of a fully-connected layer that onnxpq knows"


def explain(node: ir.Node, context: Context, model: ir.Model) -> Skipped | None:
    """Why a node of the main graph that no rule matches keeps its large constant; None where it has none."""
    label = context.labels[node]
    if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
        codes = node.inputs[INPUTS.index("codes")]
        return Skipped(label, OP_TYPE, codes.name if codes else None, f"{OP_TYPE} '{label}' is compressed already.")
    origin = _large_constant(node, context)
    if origin is None:
        return None
    if node.op_identifier() in model.functions:
        text = "it calls a local function with the constant '{name}'; layers in functions are not supported yet"
    elif origin.tensor.dtype in _QUANTIZED_TYPES:
        text = "its constant '{name}' is quantized already"
    else:
        text = _REASONS.get(node.op_type, _OTHER)
    reason = f"{node.op_type} '{label}': {text.format(name=origin.name)}."
    return Skipped(label, node.op_type, origin.name, reason)


def explain_nested(model: ir.Model, context: Context) -> Iterator[Skipped]:
    """Nodes in subgraphs and local functions whose constant factor or large constant stays as it is."""
    for node in model.graph:
        for inner in _nodes_of_subgraphs(node):
            place = f"a subgraph of node '{context.labels[node]}' ({node.op_type})"
            yield from _nested(inner, place, context)
    for function in model.functions.values():
        # The body of our own PQMatMul multiplies constants too.
        for inner in function.all_nodes() if function.domain != DOMAIN else ():
            yield from _nested(inner, f"the local function '{function.domain}::{function.name}'", context)


def _nested(node: ir.Node, place: str, context: Context) -> Iterator[Skipped]:
    factors = node.inputs[:2] if node.op_type in ("MatMul", "Gemm") else ()
    origin = next((o for o in map(context.origin, factors) if o is not None), None) or _large_constant(node, context)
    if origin is not None:
        label = node.name or next((output.name for output in node.outputs if output.name), node.op_type)
        reason = f"{node.op_type} '{label}' lies in {place}: not yet supported."
        yield Skipped(label, node.op_type, origin.name, reason)


def _nodes_of_subgraphs(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from graph.all_nodes()


def _large_constant(node: ir.Node, context: Context) -> Origin | None:
    """The largest constant among the inputs of a node that is not constant itself, if it is large."""
    if any(context.origin(value) is not None for value in node.outputs):
        return None
    origins = [origin for origin in map(context.origin, node.inputs) if origin is not None]
    large = [o for o in origins if o.tensor.dtype in _WEIGHT_TYPES and _elements(o) >= LARGE_CONSTANT]
    return max(large, key=_elements, default=None)


def _elements(origin: Origin) -> int:
    return prod(origin.tensor.shape.numpy())
