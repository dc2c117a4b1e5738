"""``Gather(W, rows)`` along the first axis of a constant matrix W: a table that is looked up, such as an embedding."""

from dataclasses import replace

import onnx_ir as ir

from onnxpq.graph import FLOATS, Layer, Skipped
from onnxpq.pq import PQTensor
from onnxpq.rewriting.rules.base import Context, Editor, Rule
from onnxpq.rewriting.rules.weights import is_operator, matrix_layer, required_input, weight_of
from onnxpq.support.kinds import TABLE


class GatherRule(Rule):
    """Gather of rows of a matrix; as a layer its outputs are the rows and its inputs the columns.

    So it shares the codes of a layer that multiplies by the transpose, as language models do with their embedding.
    """

    def match(self, node: ir.Node, context: Context) -> bool:
        """A Gather of a constant floating-point matrix by numbers that are not constant."""
        if not is_operator(node, "Gather") or context.origin(node.inputs[1]) is not None:
            return False
        origin = context.origin(node.inputs[0])
        return origin is not None and origin.tensor.dtype in FLOATS and len(origin.tensor.shape.numpy()) == 2

    def check(self, node: ir.Node, context: Context) -> Layer | Skipped:
        """A layer where rows are looked up."""
        weight = weight_of(node, 0, context)
        if isinstance(weight, Skipped):
            return weight
        axis = node.attributes.get_int("axis", 0)
        if len(weight.shape) != 2 or axis not in (0, -2):
            reason = (
                f"The table '{weight.name}' has shape {list(weight.shape)} and is looked up along axis {axis}; only "
                "rows of a matrix are compressed."
            )
            return Skipped(context.labels[node], node.op_type, weight.name, reason)
        return replace(matrix_layer(node, context, weight, is_in_out=False, bias=None), kind=TABLE)

    def rewrite(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """PQGather [-> Cast] in the place of Gather."""
        weight = weight_of(node, 0, context)
        if not isinstance(weight, Skipped):
            editor.replace([node], editor.lookup(layer, required_input(node, 1), tensor, dtype=weight.dtype))
