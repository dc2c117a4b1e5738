"""What is left of a model beside its compressed weights: notes of exporters go, and constants may be stored in float16.

A Cast stands behind such a constant, which runtimes compute once, when a session is made.
"""

from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateHashedInitializersPass

from onnxpq.config import HALF
from onnxpq.operators import DOMAIN, INPUTS_OF, MATMUL_OP_TYPES
from onnxpq.rewriting.rules.editor import Editor, names_of

LEAST_ELEMENTS: Final = 64
"""A Cast and two names take about 100 bytes of the file."""

MOST_ROUNDING: Final = 2**-10
"""Of any number, relative to it: float16 has 11 bits, but numbers below 6e-5 lose some of them."""


def trimmed(model: ir.Model, *, rest: str, keep_metadata: bool) -> ir.Model:
    """A smaller copy of a model.

    Args:
        model: with operators of ours; not changed.
        rest: "float16" stores float32 constants of `LEAST_ELEMENTS` or more so, where no number loses more than
            `MOST_ROUNDING` of itself; "float32" leaves them as they are.
        keep_metadata: leave the properties and texts of nodes and values. Those of the model itself always stay.

    Returns:
        The copy; tensors that stay are shared with `model`. Constants of equal content are one.
    """
    result = model.clone()
    if not keep_metadata:
        ClearMetadataAndDocStringPass()(result)
        for value in (value for graph in result.graphs() for value in _values(graph)):
            value.metadata_props.clear()
            value.doc_string = None
    DeduplicateHashedInitializersPass()(result)
    if rest == HALF:
        names = names_of(result.graph)
        for graph in result.graphs():
            editor = Editor(graph, result.graph.opset_imports[""], names)
            for value in list(graph.initializers.values()):
                _halve(value, editor)
    return result


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]


def _halve(value: ir.Value, editor: Editor) -> None:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < LEAST_ELEMENTS:
        return
    uses = [(node, index) for node, index in value.uses()]
    if value.is_graph_input() or value.is_graph_output() or any(_is_own(*use) for use in uses):
        return
    exact = tensor.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        half = exact.astype(np.float16)
        # Written so that NaN and infinities, which are below nothing, stay as they are.
        if not (np.abs(half.astype(np.float32) - exact) <= MOST_ROUNDING * np.abs(exact)).all():
            return
    stored = editor.constant(f"{value.name}.half", half)
    if all(_takes_half(node, index) for node, index in uses):
        for node, index in uses:
            node.replace_input_with(index, stored)
    else:
        cast = editor.cast(stored, ir.DataType.FLOAT, f"{value.name}.cast")
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        editor.graph.insert_before(editor.graph[0], cast)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    del editor.graph.initializers[value.name or ""]


def _is_own(node: ir.Node, index: int) -> bool:
    """Whether what a node takes there is part of a quantized weight."""
    return node.domain == DOMAIN and INPUTS_OF[node.op_type][index] in {"codebooks", "codes", "scales"}


def _takes_half(node: ir.Node, index: int) -> bool:
    """Whether a bias of float16 is as good there."""
    return node.domain == DOMAIN and node.op_type in MATMUL_OP_TYPES and INPUTS_OF[node.op_type][index] == "bias"
