"""``MatMul(W, X)`` with a constant matrix W on the left: a layer that is given X transposed, and its output too."""

import onnx_ir as ir

from onnxpq.graph import Layer, Skipped
from onnxpq.pq import PQTensor
from onnxpq.rewriting.rules.base import Context, Editor, Rule
from onnxpq.rewriting.rules.matmul import swapped
from onnxpq.rewriting.rules.weights import constant_rank, factors, is_operator, matrix_layer, required_input, weight_of


class LeftMatMulRule(Rule):
    """MatMul with a constant left factor."""

    def match(self, node: ir.Node, context: Context) -> bool:
        """A MatMul whose left factor alone is constant."""
        if not is_operator(node, "MatMul"):
            return False
        left, right = factors(node, context)
        return left is not None and right is None

    def check(self, node: ir.Node, context: Context) -> Layer | Skipped:
        """A layer where the constant is a floating-point matrix and the rank of X is known."""
        weight = weight_of(node, 0, context)
        if isinstance(weight, Skipped):
            return weight
        label, x = context.labels[node], required_input(node, 1)
        if constant_rank(node.inputs[0]) != 2:
            reason = f"The left factor '{weight.name}' has shape {list(weight.shape)}; only matrices are compressed."
            return Skipped(label, node.op_type, weight.name, reason)
        if context.rank(x) is None:
            reason = (
                f"The constant '{weight.name}' is the left factor, and the rank of the right one, '{x.name}', is not "
                "known; export the model with the shapes of its values."
            )
            return Skipped(label, node.op_type, weight.name, reason)
        return matrix_layer(node, context, weight, is_in_out=False, bias=None)

    def rewrite(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """Transpose -> PQMatMul -> Transpose; a vector X needs neither."""
        weight = weight_of(node, 0, context)
        if isinstance(weight, Skipped):
            return
        x = required_input(node, 1)
        rank = context.rank(x) or 0
        chain: list[ir.Node] = []
        if rank > 1:
            chain.append(editor.transpose(x, swapped(rank), f"{layer.node}.columns"))
            x = chain[-1].outputs[0]
        chain += editor.layer(layer, x, tensor, dtype=weight.dtype)
        if rank > 1:
            chain.append(editor.transpose(chain[-1].outputs[0], swapped(rank), f"{layer.node}.rows"))
        editor.replace([node], chain)
