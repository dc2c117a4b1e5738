"""``MatMul(X, W)`` and ``Add(MatMul(X, W), b)``, in either order, with a constant matrix W; X of any rank."""

import onnx_ir as ir

from onnxpq.layers import Layer, Skipped
from onnxpq.pq.tensor import PQTensor
from onnxpq.rules.base import Context, Editor, Rule
from onnxpq.rules.weights import ConstantBias, constant_bias, is_operator, required_input, right_factor


class MatMulRule(Rule):
    """MatMul with a constant right factor, and the Add of a constant bias that follows it."""

    def match(self, node: ir.Node, context: Context) -> bool:
        """A MatMul with a constant factor."""
        return is_operator(node, "MatMul") and any(context.origin(value) is not None for value in node.inputs)

    def check(self, node: ir.Node, context: Context) -> Layer | Skipped:
        """A layer where the right factor is a float32 matrix and the left one is not constant."""
        weight = right_factor(node, context)
        if isinstance(weight, Skipped):
            return weight
        in_features, out_features = weight.shape
        fused = _fused_add(node, context, out_features)
        return Layer(
            node=context.labels[node],
            op_type=node.op_type,
            weight=weight.name,
            out_features=out_features,
            in_features=in_features,
            weight_is_in_out=not weight.is_transposed,
            bias=fused[1].source.name if fused is not None else None,
        )

    def rewrite(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """PQMatMul in the place of MatMul, or of MatMul and Add."""
        fused = _fused_add(node, context, layer.out_features)
        old, bias = ([node], None) if fused is None else ([node, fused[0]], fused[1])
        editor.replace(old, [editor.pq_matmul(layer, required_input(node, 0), tensor, bias)])


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
