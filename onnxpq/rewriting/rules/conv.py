"""A convolution whose kernel is decoded when a session is made: Conv becomes PQConv, and keeps its attributes.

The kernel [out, C, ...] is a matrix of one row for each output; a sub-vector of as many weights as a filter of one
channel has is that filter. Depthwise kernels are left alone: a row has too few weights to share its scale.
"""

from math import prod
from typing import Final

import onnx_ir as ir

from onnxpq.graph import Layer, Skipped
from onnxpq.operators.body import Stored
from onnxpq.pq import PQTensor
from onnxpq.rewriting.rules.base import Context, Editor, Rule
from onnxpq.rewriting.rules.weights import is_operator, required_input, rows_layer, weight_of
from onnxpq.support.kinds import CONVOLUTION

LEAST_COLUMNS: Final = 16
"""Weights of a row, at least: the row's scale takes as many bytes as a float32 weight."""


class ConvRule(Rule):
    """Conv with a constant kernel, of any rank, groups, strides, dilations and pads."""

    def match(self, node: ir.Node, context: Context) -> bool:
        """A Conv whose kernel is constant."""
        return is_operator(node, "Conv") and len(node.inputs) > 1 and context.origin(node.inputs[1]) is not None

    def check(self, node: ir.Node, context: Context) -> Layer | Skipped:
        """A layer where a row has enough weights."""
        weight = weight_of(node, 1, context)
        if isinstance(weight, Skipped):
            return weight
        columns = prod(weight.shape[1:])
        if len(weight.shape) < 3 or weight.is_transposed or columns < LEAST_COLUMNS:
            reason = (
                f"The kernel '{weight.name}' has shape {list(weight.shape)}: {columns} weights for each output, which "
                f"need {LEAST_COLUMNS} to share a scale."
            )
            return Skipped(context.labels[node], node.op_type, weight.name, reason)
        return rows_layer(node, context, weight.name, weight.shape[0], columns, weight.nbytes, kind=CONVOLUTION)

    def rewrite(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """PQConv in the place of Conv."""
        weight = weight_of(node, 1, context)
        if not isinstance(weight, Skipped):
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            x = required_input(node, 0)
            stored = Stored(weight.shape, weight.dtype)
            convolution = editor.convolution(layer, x, tensor, bias, stored, node.attributes)
            editor.replace([node], [convolution])
