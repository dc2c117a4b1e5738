"""Rewrite rules: the graph patterns in which a `PQTensor` may replace a weight.

Adding a pattern is adding a file with a `Rule` and an entry in `RULES`.
"""

from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from onnxpq.graph import Layer, Skipped
from onnxpq.rewriting.rules.base import Context, Rule
from onnxpq.rewriting.rules.batched import BatchedMatMulRule
from onnxpq.rewriting.rules.conv import ConvRule
from onnxpq.rewriting.rules.conv1x1 import Conv1x1Rule
from onnxpq.rewriting.rules.gather import GatherRule
from onnxpq.rewriting.rules.gemm import GemmRule
from onnxpq.rewriting.rules.left import LeftMatMulRule
from onnxpq.rewriting.rules.matmul import MatMulRule
from onnxpq.rewriting.rules.stored import stored_weights

RULES: Final[tuple[Rule, ...]] = (
    GemmRule(),
    MatMulRule(),
    LeftMatMulRule(),
    BatchedMatMulRule(),
    Conv1x1Rule(),
    ConvRule(),
    GatherRule(),
)
"""In the order in which they are asked. Only a convolution with a kernel of one point is the pattern of two."""


def candidates(node: ir.Node, context: Context) -> Iterator[tuple[Rule | None, Layer | Skipped]]:
    """What may be compressed at a node, the best first: by each rule whose pattern it is, and without a rule.

    A layer without a rule is a constant that is decoded in front of the node (`onnxpq.rewriting.rules.stored`).
    """
    for rule in RULES:
        if rule.match(node, context):
            yield rule, rule.check(node, context)
    for layer in stored_weights(node, context):
        yield None, layer
