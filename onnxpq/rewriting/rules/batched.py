"""``MatMul(X, W)`` with a constant stack W [..., in, out] of matrices, each of which multiplies its own part of X.

The matrices are one layer, [stack * out, in], so that they share their codebooks. In its place stand a PQMatMul for
each matrix, between a Split of X (if it has 1 along that axis, each gets all of it) and a Concat; where W is a stack
of one matrix, a PQMatMul alone.
"""

from dataclasses import replace
from math import prod
from typing import Final

import onnx_ir as ir

from onnxpq.graph import Layer, Skipped
from onnxpq.pq import PQTensor
from onnxpq.rewriting.rules.base import Context, Editor, Rule
from onnxpq.rewriting.rules.weights import (
    Weight,
    constant_rank,
    factors,
    is_operator,
    matrix_layer,
    required_input,
    right_factor,
)

SPLIT_BY_INPUT_OPSET: Final = 13

MAX_MATRICES: Final = 64
"""Each is a node and two constants of the graph. (64 of 256 x 256 are three times faster than the original.)"""


class BatchedMatMulRule(Rule):
    """MatMul with a constant stack of matrices."""

    def match(self, node: ir.Node, context: Context) -> bool:
        """A MatMul whose right factor is a constant of three axes or more."""
        if not is_operator(node, "MatMul"):
            return False
        _, right = factors(node, context)
        return right is not None and (constant_rank(node.inputs[1]) or 0) > 2

    def check(self, node: ir.Node, context: Context) -> Layer | Skipped:
        """A layer where only one axis of the stack is longer than 1, and X is known to have that axis as well."""
        weight = right_factor(node, context)
        if isinstance(weight, Skipped):
            return weight
        reason = _refusal(node, weight, context)
        if reason is not None:
            return Skipped(context.labels[node], node.op_type, weight.name, reason)
        return matrix_layer(node, context, weight, is_in_out=True, bias=None)

    def rewrite(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """PQMatMul, or [Split ->] a PQMatMul for each matrix -> Concat."""
        weight = right_factor(node, context)
        if isinstance(weight, Skipped):
            return
        x, axis = required_input(node, 0), _axis(weight)
        if axis is None:
            editor.replace([node], editor.layer(layer, x, tensor, dtype=weight.dtype))
            return
        count = weight.shape[axis]
        shape = context.shape(x) or ()
        along = axis + len(shape) - len(weight.shape)
        chain: list[ir.Node] = [] if shape[along] == 1 else [_split(editor, x, along, count, layer)]
        parts = chain[0].outputs if chain else [x] * count
        products: list[ir.Value] = []
        for number, (part, piece) in enumerate(zip(parts, _pieces(tensor, count), strict=True)):
            own = replace(layer, node=f"{layer.node}.{number}", weight=f"{layer.weight}.{number}")
            chain += editor.layer(own, part, piece, dtype=weight.dtype)
            products.append(chain[-1].outputs[0])
        chain.append(editor.node("Concat", products, f"{layer.node}.concat", [ir.AttrInt64("axis", along)]))
        editor.replace([node], chain)


def _axis(weight: Weight) -> int | None:
    """The axis of the stack that is longer than 1."""
    return next((axis for axis, size in enumerate(weight.shape[:-2]) if size > 1), None)


def _refusal(node: ir.Node, weight: Weight, context: Context) -> str | None:
    x = required_input(node, 0)
    shape, stack = context.shape(x), weight.shape[:-2]
    what = f"The weight '{weight.name}' has shape {list(weight.shape)}"
    if shape is None or len(shape) < len(weight.shape):
        known = "of unknown shape" if shape is None else f"of shape {list(shape)}"
        return f"{what}, more axes than its input '{x.name}' {known}; only stacks that the input has too are supported."
    if prod(stack) > MAX_MATRICES:
        return f"{what}: {prod(stack)} matrices, more than the {MAX_MATRICES} that get a node each."
    axis = _axis(weight)
    if axis is None:
        return None
    if prod(stack) != stack[axis]:
        return f"{what}; only stacks along one axis are supported."
    size = shape[axis + len(shape) - len(weight.shape)]
    if size not in (1, stack[axis]):
        return f"{what}, its input '{x.name}' {list(shape)}, which must be known to have {stack[axis]} there too, or 1."
    return None


def _split(editor: Editor, x: ir.Value, axis: int, count: int, layer: Layer) -> ir.Node:
    along, sizes, name = ir.AttrInt64("axis", axis), [1] * count, f"{layer.node}.split"
    if editor.opset >= SPLIT_BY_INPUT_OPSET:
        return editor.node("Split", [x, editor.integers(sizes, f"{name}.sizes")], name, [along], count)
    return editor.node("Split", [x], name, [along, ir.AttrInt64s("split", sizes)], count)


def _pieces(tensor: PQTensor, count: int) -> list[PQTensor]:
    """The tensors of the matrices, which lie below one another."""
    rows = tensor.out_features // count
    return [
        replace(tensor, codes=tensor.codes[i * rows : (i + 1) * rows], scales=tensor.scales[i * rows : (i + 1) * rows])
        for i in range(count)
    ]
