"""Rewrite rules: the graph patterns in which a `PQTensor` may replace a weight.

Adding a pattern is adding a file with a `Rule` and an entry in `RULES`.
"""

from typing import Final

import onnx_ir as ir

from onnxpq.rewriting.rules.base import Context, Rule
from onnxpq.rewriting.rules.batched import BatchedMatMulRule
from onnxpq.rewriting.rules.conv1x1 import Conv1x1Rule
from onnxpq.rewriting.rules.gather import GatherRule
from onnxpq.rewriting.rules.gemm import GemmRule
from onnxpq.rewriting.rules.left import LeftMatMulRule
from onnxpq.rewriting.rules.matmul import MatMulRule

RULES: Final[tuple[Rule, ...]] = (
    GemmRule(),
    MatMulRule(),
    LeftMatMulRule(),
    BatchedMatMulRule(),
    Conv1x1Rule(),
    GatherRule(),
)
"""In the order in which they are asked; the first that matches decides. No node is the pattern of two."""


def matching_rule(node: ir.Node, context: Context) -> Rule | None:
    """The rule whose pattern the node is, if any."""
    return next((rule for rule in RULES if rule.match(node, context)), None)
