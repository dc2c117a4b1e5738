"""``Y = alpha * A' B' + beta * C`` with a constant B: any transA, transB, alpha, beta; C constant, computed or absent.

* alpha goes into the scales; transA = 1 puts a Transpose before.
* ``beta * C`` goes into the bias where C is constant and equal for all rows; else C is added afterwards.
* com.microsoft's FusedGemm, which onnxruntime's optimizer writes, is a Gemm with an activation behind it.
"""

from typing import Final

import numpy as np
import onnx_ir as ir

from onnxpq.graph import Layer, Skipped
from onnxpq.pq import PQTensor
from onnxpq.rewriting.rules.base import Context, Editor, Rule
from onnxpq.rewriting.rules.weights import (
    ConstantBias,
    Weight,
    constant_bias,
    factors,
    is_operator,
    matrix_layer,
    required_input,
    right_factor,
)

_ACTIVATION_ATTRIBUTES: Final = {"activation_alpha": "alpha", "activation_beta": "beta", "activation_gamma": "gamma"}


class GemmRule(Rule):
    """Gemm, or FusedGemm, with a constant matrix."""

    def match(self, node: ir.Node, context: Context) -> bool:
        """A Gemm with a constant A or B."""
        return (is_operator(node, "Gemm") or _is_fused(node)) and factors(node, context) != (None, None)

    def check(self, node: ir.Node, context: Context) -> Layer | Skipped:
        """A layer where B is a floating-point constant and A is not."""
        weight = right_factor(node, context)
        if isinstance(weight, Skipped):
            return weight
        is_in_out = not node.attributes.get_int("transB", 0)
        bias = _bias(node, context, weight.shape[1] if is_in_out else weight.shape[0])
        source = None if bias is None else bias.source.name
        return matrix_layer(node, context, weight, is_in_out=is_in_out, bias=source)

    def rewrite(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """[Transpose ->] PQMatMul [-> Add, of C or of Mul(beta, C)] [-> activation]."""
        weight = right_factor(node, context)
        if isinstance(weight, Weight):
            editor.replace([node], _chain(node, layer, tensor, context, editor, weight.dtype))


def _chain(
    node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor, dtype: ir.DataType
) -> list[ir.Node]:
    x = required_input(node, 0)
    chain: list[ir.Node] = []
    if node.attributes.get_int("transA", 0):
        chain.append(editor.transpose(x, [1, 0], f"{layer.node}.transpose"))
        x = chain[-1].outputs[0]
    bias = _bias(node, context, layer.out_features)
    alpha = node.attributes.get_float("alpha", 1.0)
    chain += editor.layer(layer, x, tensor, bias, dtype=dtype, alpha=alpha)
    c = _addend(node)
    if c is not None and bias is None:
        y, beta = chain[-1].outputs[0], _beta(node)
        if beta != 1.0:
            factor = editor.constant(f"{layer.node}.beta", np.array(beta, dtype.numpy()))
            chain.append(editor.node("Mul", [c, factor], f"{layer.node}.scale"))
            c = chain[-1].outputs[0]
        chain.append(editor.node("Add", [y, c], f"{layer.node}.add"))
    if _is_fused(node):
        chain.append(_activation(node, chain[-1].outputs[0], layer, editor))
    return chain


def _is_fused(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("com.microsoft", "FusedGemm")


def _activation(node: ir.Node, value: ir.Value, layer: Layer, editor: Editor) -> ir.Node:
    op_type = node.attributes.get_string("activation", "Relu")
    attributes = [
        ir.AttrFloat32(name, node.attributes.get_float(fused, 0.0))
        for fused, name in _ACTIVATION_ATTRIBUTES.items()
        if fused in node.attributes
    ]
    return editor.node(op_type, [value], f"{layer.node}.{op_type}", attributes)


def _beta(node: ir.Node) -> float:
    return float(node.attributes.get_float("beta", 1.0))


def _addend(node: ir.Node) -> ir.Value | None:
    """C, where there is one that counts."""
    return node.inputs[2] if len(node.inputs) > 2 and _beta(node) != 0.0 else None


def _bias(node: ir.Node, context: Context, out_features: int) -> ConstantBias | None:
    """``beta * C``, where C is constant and equal for all rows."""
    return constant_bias(_addend(node), context, out_features, factor=_beta(node))
