"""The user's model, in the form in which its layers are found, trained and rewritten.

What onnxpq works on is the user's own graph, with a few things changed that no caller of the model sees: local
functions with layers or tables in them are inlined, names that several subgraphs use are told apart, an Einsum that is
a layer is spelt as MatMul, and outputs of Scan's bodies have shapes.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx_ir as ir

from onnxpq.errors import ModelError
from onnxpq.graph import einsum, subgraphs
from onnxpq.graph.inlining import inline
from onnxpq.operators import DOMAIN

_LAYER_OPERATORS: Final = frozenset({"Conv", "Einsum", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"})


def prepare(model: ir.Model) -> ir.Model:
    """A copy of a model in which every layer lies in the main graph or a subgraph, and no two values share a name.

    An Einsum that multiplies by a constant matrix is spelt as MatMul (`onnxpq.graph.einsum`).

    Nodes keep the names that they have in a function (with a number, where it is called more than once), those without
    a name get that of their first output. Inputs, outputs and the names of the main graph stay. A prepared model is
    left as it is.

    Args:
        model: any valid model; not changed. Tensors are shared.

    Raises:
        ModelError: nodes are not in topological order, or a function with a layer cannot be inlined.
    """
    try:
        copy = model.clone()
    except RuntimeError as error:
        raise ModelError(
            f"The nodes of graph '{model.graph.name}' are not in topological order, or form a cycle. Export it again."
        ) from error
    holders = _functions_with_layers(copy)
    for identifier in holders:
        _name_nodes(copy.functions[identifier])
    if holders:
        inline(copy, holders)
    _tell_apart(copy)
    names = _names(copy)
    for node in [node for node in copy.graph.all_nodes() if einsum.is_layer(node)]:
        einsum.spell_as_matmul(node, names)
    subgraphs.state_shapes(copy)
    return copy


def has_bfloat16(model: ir.Model) -> bool:
    """Whether a model has constants of bfloat16, or casts to it."""
    return any(dtype == ir.DataType.BFLOAT16 for dtype in _constant_types(model))


def widened(model: ir.Model) -> ir.Model:
    """A copy of a model that computes in float32 what the model computes in bfloat16.

    onnxruntime has next to no operators of bfloat16 on a CPU. Constants keep their values, which float32 has too.

    Args:
        model: not changed.
    """
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == ir.DataType.BFLOAT16:
                value.const_value = _widened(value.const_value)
        for value in (*_values(graph), *graph.outputs):
            if value.dtype == ir.DataType.BFLOAT16:
                value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in _nodes(copy):
        for name, attribute in list(node.attributes.items()):
            if _is_type(attribute) and attribute.as_int() == ir.DataType.BFLOAT16:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
            elif _is_bfloat16_tensor(attribute):
                node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
    return copy


def _constant_types(model: ir.Model) -> Iterator[int | None]:
    for graph in model.graphs():
        yield from (value.dtype for value in graph.initializers.values())
    for node in _nodes(model):
        for attribute in node.attributes.values():
            if _is_type(attribute):
                yield attribute.as_int()
            elif _is_bfloat16_tensor(attribute):
                yield ir.DataType.BFLOAT16


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _is_type(attribute: ir.Attr) -> bool:
    """Whether an attribute is an element type, as those of Cast and of random numbers are."""
    return attribute.name in ("to", "dtype") and attribute.type == ir.AttributeType.INT and not attribute.is_ref()


def _is_bfloat16_tensor(attribute: ir.Attr) -> bool:
    is_tensor = attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()
    return is_tensor and attribute.as_tensor().dtype == ir.DataType.BFLOAT16


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _functions_with_layers(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """The functions that multiply or look up, and their callers; our own PQMatMul is compressed already."""
    found = {
        identifier
        for identifier, function in model.functions.items()
        if function.domain != DOMAIN and any(_may_be_layer(node) for node in function.all_nodes())
    }
    while True:
        callers = {
            identifier
            for identifier, function in model.functions.items()
            if any(node.op_identifier() in found for node in function.all_nodes())
        }
        if callers <= found:
            return found
        found |= callers


def _may_be_layer(node: ir.Node) -> bool:
    """Whether a node of a function may be one; what is looked up in a value that was computed is no table."""
    if node.op_type != "Gather":
        return node.op_type in _LAYER_OPERATORS
    table = node.inputs[0]
    maker = None if table is None else table.producer()
    return maker is None or maker.op_type == "Constant"


def _name_nodes(function: ir.Function) -> None:
    for node in function.all_nodes():
        if not node.name:
            node.name = next((output.name for output in node.outputs if output.name), None)


def _tell_apart(model: ir.Model) -> None:
    """Gives values of subgraphs a new name where another graph has it: ONNX lets branches use the same names."""
    taken: set[str] = set()
    for graph in model.graphs():
        for value in _values(graph):
            if graph is not model.graph and value.name in taken:
                value.name = _free(value.name, taken)
            taken.add(value.name or "")


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    inputs = set(graph.inputs)
    yield from graph.inputs
    yield from [value for value in graph.initializers.values() if value not in inputs]
    for node in graph:
        yield from (output for output in node.outputs if output.name)


def _names(model: ir.Model) -> set[str]:
    values = {value.name for graph in model.graphs() for value in _values(graph) if value.name}
    return values | {node.name for node in model.graph.all_nodes() if node.name}


def _free(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
