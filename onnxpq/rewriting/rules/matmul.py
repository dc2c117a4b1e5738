"""``MatMul(X, W)`` and ``Add(MatMul(X, W), b)``, in either order, with a constant matrix W; X of any rank.

com.microsoft's FusedMatMul, which onnxruntime's optimizer writes, adds alpha (it goes into the scales), transB, and
transA (a Transpose before, for which the rank of X must be known).
"""

import onnx_ir as ir

from onnxpq.graph import Layer, Skipped
from onnxpq.pq import PQTensor
from onnxpq.rewriting.rules.base import Context, Editor, Rule
from onnxpq.rewriting.rules.weights import (
    ConstantBias,
    Weight,
    constant_bias,
    constant_rank,
    factors,
    is_operator,
    matrix_layer,
    required_input,
    right_factor,
)


class MatMulRule(Rule):
    """MatMul with a constant right factor, and the Add of a constant bias that follows it."""

    def match(self, node: ir.Node, context: Context) -> bool:
        """A MatMul with a constant right factor that is no stack of matrices, or FusedMatMul with a constant factor."""
        if not (is_operator(node, "MatMul") or _is_fused(node)):
            return False
        left, right = factors(node, context)
        if _is_fused(node):
            return left is not None or right is not None
        return right is not None and (constant_rank(node.inputs[1]) or 0) <= 2

    def check(self, node: ir.Node, context: Context) -> Layer | Skipped:
        """A layer where the right factor is a floating-point matrix and the left one is not constant."""
        weight = right_factor(node, context)
        if isinstance(weight, Skipped):
            return weight
        reason = _refusal(node, weight, context)
        if reason is not None:
            return Skipped(context.labels[node], node.op_type, weight.name, reason)
        is_in_out = not node.attributes.get_int("transB", 0)
        fused = _fused_add(node, context, weight.shape[1] if is_in_out else weight.shape[0])
        bias = fused[1].source.name if fused is not None else None
        return matrix_layer(node, context, weight, is_in_out=is_in_out, bias=bias)

    def rewrite(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """[Transpose ->] PQMatMul in the place of MatMul, or of MatMul and Add."""
        weight = right_factor(node, context)
        if isinstance(weight, Skipped):
            return
        x = required_input(node, 0)
        chain: list[ir.Node] = []
        if node.attributes.get_int("transA", 0):
            rank = context.rank(x) or 0
            chain.append(editor.transpose(x, swapped(rank), f"{layer.node}.transpose"))
            x = chain[-1].outputs[0]
        fused = _fused_add(node, context, layer.out_features)
        old, bias = ([node], None) if fused is None else ([node, fused[0]], fused[1])
        alpha = node.attributes.get_float("alpha", 1.0)
        chain += editor.layer(layer, x, tensor, bias, dtype=weight.dtype, alpha=alpha)
        editor.replace(old, chain)


def swapped(rank: int) -> list[int]:
    """The permutation of axes that swaps the last two."""
    return [*range(rank - 2), rank - 1, rank - 2]


def _is_fused(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("com.microsoft", "FusedMatMul")


def _refusal(node: ir.Node, weight: Weight, context: Context) -> str | None:
    if len(weight.shape) != 2:
        return f"The weight '{weight.name}' has shape {list(weight.shape)}; only matrices are compressed here."
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        return "Its batch axes are transposed (transBatchA, transBatchB), which is not supported."
    if node.attributes.get_int("transA", 0) and (context.rank(required_input(node, 0)) or 0) < 2:
        return "Its left factor is transposed and has an unknown rank; export the model with the shapes of its values."
    return None


def _fused_add(node: ir.Node, context: Context, out_features: int) -> tuple[ir.Node, ConstantBias] | None:
    """The Add that is the product's only use and adds a constant to every row, without making Y's rank larger."""
    product = node.outputs[0]
    uses = tuple(product.uses())
    if product.is_graph_output() or len(uses) != 1:
        return None
    add, index = uses[0]
    if not is_operator(add, "Add") or add.graph is not node.graph:
        return None
    bias = constant_bias(add.inputs[1 - index], context, out_features)
    if bias is None:
        return None
    bias_rank, rank = len(bias.source.shape or ()), context.rank(required_input(node, 0))
    return (add, bias) if bias_rank <= 1 or (rank is not None and bias_rank <= rank) else None
