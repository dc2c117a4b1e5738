"""A convolution with a kernel of one point and one group is a fully-connected layer over the channels.

``X [N, C, *sizes]`` -> (Pad) -> (Slice, for strides) -> Transpose to [N, *sizes, C] -> PQMatMul -> Transpose back.
"""

from dataclasses import replace
from typing import Final

import numpy as np
import onnx_ir as ir

from onnxpq.graph import Layer, Skipped
from onnxpq.pq import PQTensor
from onnxpq.rewriting.rules.base import Context, Editor, Rule
from onnxpq.rewriting.rules.weights import constant_bias, is_operator, required_input, rows_layer, weight_of

SLICE_WITH_STEPS_OPSET: Final = 10
PAD_BY_INPUT_OPSET: Final = 11


class Conv1x1Rule(Rule):
    """Conv with a constant kernel of one point."""

    def match(self, node: ir.Node, context: Context) -> bool:
        """A Conv of one group whose constant kernel has one point."""
        if not is_operator(node, "Conv") or len(node.inputs) < 2 or context.origin(node.inputs[1]) is None:
            return False
        shape = context.shape(required_input(node, 1))
        one_point = shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:])
        return one_point and node.attributes.get_int("group", 1) == 1

    def check(self, node: ir.Node, context: Context) -> Layer | Skipped:
        """A layer where the bias is constant; what auto_pad would add to a kernel of one point is nothing."""
        weight = weight_of(node, 1, context)
        if isinstance(weight, Skipped):
            return weight
        bias = constant_bias(_bias(node), context, weight.shape[0])
        if _bias(node) is not None and bias is None:
            reason = "The bias of the 1x1 convolution is not constant: not supported."
            return Skipped(context.labels[node], node.op_type, weight.name, reason)
        layer = rows_layer(node, context, weight.name, weight.shape[0], weight.shape[1], weight.nbytes)
        return replace(layer, bias=None if bias is None else bias.source.name)

    def rewrite(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """[Pad ->] [Slice ->] Transpose -> PQMatMul -> Transpose."""
        weight = weight_of(node, 1, context)
        if isinstance(weight, Skipped):
            return
        x, rank = required_input(node, 0), len(weight.shape)
        chain: list[ir.Node] = []
        pads = list(node.attributes.get_ints("pads", []))
        if any(pads):
            chain.append(_padded(editor, x, pads, layer, weight.dtype))
            x = chain[-1].outputs[0]
        strides = _strides(node)
        if strides:
            chain.append(_subsample(editor, x, strides, layer))
            x = chain[-1].outputs[0]
        chain.append(editor.transpose(x, [0, *range(2, rank), 1], f"{layer.node}.channels_last"))
        bias = constant_bias(_bias(node), context, layer.out_features)
        chain += editor.layer(layer, chain[-1].outputs[0], tensor, bias, dtype=weight.dtype)
        first = [0, rank - 1, *range(1, rank - 1)]
        chain.append(editor.transpose(chain[-1].outputs[0], first, f"{layer.node}.channels_first"))
        editor.replace([node], chain)


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _strides(node: ir.Node) -> list[int]:
    """The strides; empty where all are 1."""
    strides = list(node.attributes.get_ints("strides", []))
    return strides if any(stride != 1 for stride in strides) else []


def _padded(editor: Editor, x: ir.Value, pads: list[int], layer: Layer, dtype: ir.DataType) -> ir.Node:
    """Zeros around the points; the pads are those of a Conv: of all axes before, then of all behind."""
    half, name = len(pads) // 2, f"{layer.node}.pad"
    sizes = [0, 0, *pads[:half], 0, 0, *pads[half:]]
    if editor.opset < PAD_BY_INPUT_OPSET:
        return editor.node("Pad", [x], name, [ir.AttrInt64s("pads", sizes)])
    zero = editor.constant(f"{name}.value", np.zeros((), dtype.numpy()))
    return editor.node("Pad", [x, editor.integers(sizes, f"{name}s"), zero], name)


def _subsample(editor: Editor, x: ir.Value, strides: list[int], layer: Layer) -> ir.Node:
    name = f"{layer.node}.stride"
    if editor.opset < SLICE_WITH_STEPS_OPSET:
        # Slice has no steps yet; the largest of one value is the value.
        kernel = ir.AttrInt64s("kernel_shape", [1] * len(strides))
        return editor.node("MaxPool", [x], name, [kernel, ir.AttrInt64s("strides", strides)])
    count = len(strides)
    numbers = ([0] * count, [np.iinfo(np.int64).max] * count, list(range(2, 2 + count)), strides)
    return editor.node("Slice", [x, *(editor.integers(row, f"{name}s") for row in numbers)], name)
