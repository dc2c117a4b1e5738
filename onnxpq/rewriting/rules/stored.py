"""Any other constant: a PQWeight in front of the node that takes it, which stays as it is.

Runtimes compute the constant once, when a session is made, wherever it goes then: into a recurrent layer, a transposed
convolution, an operator of onnxruntime's own, or a loop that carries it along unchanged.
"""

from collections.abc import Iterator
from math import prod
from typing import Final

import onnx_ir as ir

from onnxpq.graph import FLOATS, Layer, is_standard
from onnxpq.operators import DOMAIN
from onnxpq.operators.body import Stored
from onnxpq.pq import PQTensor
from onnxpq.rewriting.rules.context import Context
from onnxpq.rewriting.rules.conv import LEAST_COLUMNS
from onnxpq.rewriting.rules.editor import Editor
from onnxpq.rewriting.rules.weights import rows_layer
from onnxpq.support.kinds import CONVOLUTION, OTHER, RECURRENT

_KINDS: Final = {"LSTM": RECURRENT, "GRU": RECURRENT, "RNN": RECURRENT, "ConvTranspose": CONVOLUTION}


def stored_weights(node: ir.Node, context: Context) -> Iterator[Layer]:
    """The constants among a node's inputs that a PQWeight may stand for: floating-point matrices, or stacks of them.

    The rows of a kernel are those of its first axis; else the columns are the last axis.
    """
    if node.domain == DOMAIN or any(context.origin(value) is not None for value in node.outputs):
        return
    kind = _KINDS.get(node.op_type, OTHER) if is_standard(node, node.op_type) else OTHER
    seen: set[str] = set()
    for value in node.inputs:
        tensor = context.constant(value)
        if value is None or tensor is None or tensor.dtype not in FLOATS or (value.name or "") in seen:
            continue
        shape = tensor.shape.numpy()
        columns = (prod(shape[1:]) if kind == CONVOLUTION else shape[-1]) if len(shape) > 1 else 0
        if columns < LEAST_COLUMNS or 0 in shape:
            continue
        seen.add(value.name or "")
        yield rows_layer(node, context, value.name or "", prod(shape) // columns, columns, tensor.nbytes, kind=kind)


def store(node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
    """A PQWeight in front of the node, in the place of its constant."""
    for index, value in enumerate(node.inputs):
        found = context.constant(value)
        if value is not None and found is not None and value.name == layer.weight:
            stored = Stored(tuple(found.shape.numpy()), found.dtype)
            node.replace_input_with(index, editor.stored(layer, tensor, stored))
