"""Rewrite rules: the graph patterns in which a `PQTensor` may replace a weight.

Adding a pattern is adding a file with a `Rule` and an entry in `RULES`.
"""

from typing import Final

import onnx_ir as ir

from onnxpq.rules.base import Context, Rule
from onnxpq.rules.gemm import GemmRule
from onnxpq.rules.matmul import MatMulRule

RULES: Final[tuple[Rule, ...]] = (GemmRule(), MatMulRule())
"""In the order in which they are asked; the first that matches decides."""


def matching_rule(node: ir.Node, context: Context) -> Rule | None:
    """The rule whose pattern the node is, if any."""
    return next((rule for rule in RULES if rule.match(node, context)), None)
