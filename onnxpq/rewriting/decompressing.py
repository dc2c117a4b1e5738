"""Back to dense weights: operators of ours replaced by the standard ones that they stand for.

For tools that take no functions, or want to see the weights. What is computed is what the function bodies in float32
compute, and a weight has the bits that they decode.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.errors import ModelError
from onnxpq.graph import opset, values_of
from onnxpq.operators import CONV_OP_TYPE, DOMAIN, INPUTS_OF, LOOKUP_OP_TYPE, OP_TYPES, WEIGHT_OP_TYPE
from onnxpq.pq import PQTensor, unpack_codes
from onnxpq.rewriting import functions, pruning
from onnxpq.rewriting.rules.editor import Editor, names_of


def decompress(model: ir.Model) -> ir.Model:
    """A copy of a model without operators of ours.

    Args:
        model: compressed; not changed.

    Returns:
        The copy. Its weights are those that the codes stand for, and its interface is the model's.

    Raises:
        ModelError: it has no operator of ours, or one whose codes are computed or contradict each other.
    """
    result = model.clone()
    if not any(node.domain == DOMAIN and node.op_type in OP_TYPES for node in result.graph.all_nodes()):
        raise ModelError("The model has no operator of onnxpq: there is nothing to decompress.")
    alive, names = pruning.alive(result), names_of(result.graph)
    any_float = functions.gives_back_types(result)
    for graph in result.graphs():
        editor = Editor(graph, opset(result), names)
        for node in list(graph):
            if node.domain == DOMAIN and node.op_type in OP_TYPES:
                _replace(node, editor, any_float=any_float)
    for identifier in [each for each in result.functions if each[0] == DOMAIN]:
        del result.functions[identifier]
    result.opset_imports.pop(DOMAIN, None)
    pruning.remove_dead(result, alive)
    return result


def matrix_of(node: ir.Node) -> NDArray[np.float32]:
    """The matrix [out, in] that an operator of ours holds, with the bits that its function body decodes.

    Raises:
        ModelError: an input is no constant, or they contradict each other.
    """
    codebooks, packed, scales = (_constant(node, name) for name in ("codebooks", "codes", "scales"))
    sizes = functions.sizes_of(node)
    codes = unpack_codes(packed, sizes.out_features, sizes.stages, sizes.codewords)
    tensor = PQTensor(codebooks, codes, scales.astype(np.float32), sizes.in_features)
    tensor.check()
    return tensor.decode()


def _constant(node: ir.Node, name: str) -> NDArray[Any]:
    index = INPUTS_OF[node.op_type].index(name)
    value = node.inputs[index] if index < len(node.inputs) else None
    array = None if value is None else values_of(value)
    if array is None:
        raise ModelError(f"Input '{name}' of node '{node.name}' ({DOMAIN}::{node.op_type}) is no constant.")
    return array


def _replace(node: ir.Node, editor: Editor, *, any_float: bool) -> None:
    inputs = dict(zip(INPUTS_OF[node.op_type], node.inputs, strict=False))
    codes = inputs["codes"]
    name = (codes.name if codes is not None else None) or node.name or "weight"
    base = name.removesuffix(".codes")
    stored = functions.stored_of(node)
    if node.op_type == WEIGHT_OP_TYPE and stored is not None:
        weight = editor.shared_constant((base, "stored"), base, lambda: _shaped(node, stored.shape, stored.dtype))
        ir.convenience.replace_all_uses_with(node.outputs[0], weight)
        editor.graph.remove(node, safe=True)
        return
    name = node.name or ""
    if node.op_type == CONV_OP_TYPE and stored is not None:
        weight = editor.shared_constant((base, "stored"), base, lambda: _shaped(node, stored.shape, stored.dtype))
        own = [attribute for key, attribute in node.attributes.items() if key in functions.CONV_ATTRIBUTES]
        bias = inputs.get("bias")
        given = [_given(node, inputs["X"]), weight, *([] if bias is None else [bias])]
        chain = [editor.node("Conv", given, name, own)]
    elif node.op_type == LOOKUP_OP_TYPE:
        table = editor.shared_constant((base, "table", id(inputs["scales"])), base, lambda: matrix_of(node))
        chain = [editor.node("Gather", [table, _given(node, inputs["rows"])], name)]
    else:
        chain = list(_product(node, base, inputs, editor, any_float=any_float))
    editor.replace([node], chain)


def _product(
    node: ir.Node, base: str, inputs: dict[str, ir.Value | None], editor: Editor, *, any_float: bool
) -> Iterator[ir.Node]:
    """MatMul, and Add where there is a bias, in float32."""
    x = given = _given(node, inputs["X"])
    name, bias = node.name or base, _constant(node, "bias").astype(np.float32)
    if any_float:
        cast = editor.cast(x, ir.DataType.FLOAT, f"{name}.float")
        yield cast
        x = cast.outputs[0]
    key = (base, "in_out", id(inputs["scales"]))
    weight = editor.shared_constant(key, base, lambda: np.ascontiguousarray(matrix_of(node).T))
    last = editor.node("MatMul", [x, weight], name)
    yield last
    if bias.any():
        row = editor.constant(f"{base}.bias", bias)
        last = editor.node("Add", [last.outputs[0], row], f"{name}.add")
        yield last
    if any_float:
        yield editor.node("CastLike", [last.outputs[0], given], f"{name}.cast")


def _given(node: ir.Node, value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ModelError(f"Node '{node.name}' ({DOMAIN}::{node.op_type}) lacks its first input.")
    return value


def _shaped(node: ir.Node, shape: tuple[int, ...], dtype: ir.DataType) -> NDArray[np.generic]:
    return matrix_of(node).reshape(shape).astype(dtype.numpy())
