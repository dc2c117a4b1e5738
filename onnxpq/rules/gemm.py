"""``Y = alpha * A' B' + beta * C`` with a constant B: any transA, transB, alpha, beta; C constant, computed or absent.

* alpha goes into the scales; transA = 1 puts a Transpose before.
* ``beta * C`` goes into the bias where C is constant and equal for all rows; else C is added afterwards.
"""

import numpy as np
import onnx_ir as ir

from onnxpq.layers import Layer, Skipped
from onnxpq.pq.tensor import PQTensor
from onnxpq.rules.base import Context, Editor, Rule
from onnxpq.rules.weights import ConstantBias, constant_bias, is_operator, required_input, right_factor


class GemmRule(Rule):
    """Gemm with a constant matrix."""

    def match(self, node: ir.Node, context: Context) -> bool:
        """A Gemm with a constant A or B."""
        return is_operator(node, "Gemm") and any(context.origin(value) is not None for value in node.inputs[:2])

    def check(self, node: ir.Node, context: Context) -> Layer | Skipped:
        """A layer where B is a float32 constant and A is not."""
        weight = right_factor(node, context)
        if isinstance(weight, Skipped):
            return weight
        is_in_out = not node.attributes.get_int("transB", 0)
        rows, columns = weight.shape
        out_features, in_features = (columns, rows) if is_in_out else (rows, columns)
        bias = _bias(node, context, out_features)
        return Layer(
            node=context.labels[node],
            op_type=node.op_type,
            weight=weight.name,
            out_features=out_features,
            in_features=in_features,
            weight_is_in_out=is_in_out != weight.is_transposed,
            bias=bias.source.name if bias is not None else None,
        )

    def rewrite(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """[Transpose ->] PQMatMul [-> Add, of C or of Mul(beta, C)]."""
        x = required_input(node, 0)
        chain: list[ir.Node] = []
        if node.attributes.get_int("transA", 0):
            perm = ir.AttrInt64s("perm", [1, 0])
            chain.append(editor.node("Transpose", [x], f"{layer.node}.transpose", perm=perm))
            x = chain[-1].outputs[0]
        bias = _bias(node, context, layer.out_features)
        alpha = node.attributes.get_float("alpha", 1.0)
        chain.append(editor.pq_matmul(layer, x, tensor, bias, alpha=alpha))
        c = _addend(node)
        if c is not None and bias is None:
            y, beta = chain[-1].outputs[0], _beta(node)
            if beta != 1.0:
                factor = editor.constant(f"{layer.node}.beta", np.array(beta, np.float32))
                chain.append(editor.node("Mul", [c, factor], f"{layer.node}.scale"))
                c = chain[-1].outputs[0]
            chain.append(editor.node("Add", [y, c], f"{layer.node}.add"))
        editor.replace([node], chain)


def _beta(node: ir.Node) -> float:
    return float(node.attributes.get_float("beta", 1.0))


def _addend(node: ir.Node) -> ir.Value | None:
    """C, where there is one that counts."""
    return node.inputs[2] if len(node.inputs) > 2 and _beta(node) != 0.0 else None


def _bias(node: ir.Node, context: Context, out_features: int) -> ConstantBias | None:
    """``beta * C``, where C is constant and equal for all rows."""
    return constant_bias(_addend(node), context, out_features, factor=_beta(node))
