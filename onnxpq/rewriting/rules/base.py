"""What every rewrite rule is: match, check, rewrite; and what every rewrite keeps.

A rule is asked three questions. `match`: is this node my pattern? `check`: which layer is it, or why is it left as it
is? `rewrite`: put `onnxpq::PQMatMul` (for a table `onnxpq::PQGather`) in its place. `Rule.apply` calls the last one and
enforces its contract.
"""

from abc import ABC, abstractmethod
from typing import TypeAlias

import onnx_ir as ir

from onnxpq.errors import VerificationError
from onnxpq.graph import Layer, Skipped
from onnxpq.operators import DOMAIN, OP_TYPES
from onnxpq.pq import PQTensor
from onnxpq.rewriting.rules.context import Context
from onnxpq.rewriting.rules.editor import Editor

__all__ = ["Context", "Editor", "Interface", "Rule", "interface"]

Interface: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""Names, types and shapes of a graph's inputs and of its outputs, in order."""


class Rule(ABC):
    """One graph pattern whose constant weight a `PQTensor` may replace."""

    @abstractmethod
    def match(self, node: ir.Node, context: Context) -> bool:
        """Whether the node is this rule's pattern with a constant weight, compressible or not."""

    @abstractmethod
    def check(self, node: ir.Node, context: Context) -> Layer | Skipped:
        """The layer that a matching node computes, or a whole sentence why it is left as it is."""

    @abstractmethod
    def rewrite(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """Puts an operator of ours in the node's place; the pattern's output keeps its name.

        It is named `layer.node`; of several, each is named so with a suffix after a dot.
        """

    def apply(self, node: ir.Node, layer: Layer, tensor: PQTensor, context: Context, editor: Editor) -> None:
        """Rewrites, and checks that the rule kept its promises.

        Raises:
            VerificationError: the rule changed the graph's interface, left the node, or put none of ours in its place.
        """
        graph = editor.graph
        before = interface(graph)
        self.rewrite(node, layer, tensor, context, editor)
        after = interface(graph)
        name = type(self).__name__
        if after != before:
            raise VerificationError(
                f"The rule {name} changed the inputs or outputs of the graph when it rewrote node '{layer.node}': "
                f"found {after}, expected {before}. This is a defect of the rule."
            )
        if node.graph is not None:
            raise VerificationError(
                f"The rule {name} left node '{layer.node}' ({layer.op_type}) in the graph. This is a defect of the "
                "rule."
            )
        names = [n.name or "" for n in graph if n.domain == DOMAIN and n.op_type in OP_TYPES]
        if not any(name == layer.node or name.startswith(f"{layer.node}.") for name in names):
            raise VerificationError(
                f"The rule {name} removed node '{layer.node}' and put no operator of '{DOMAIN}' of that name in its "
                "place. This is a defect of the rule."
            )


def interface(graph: ir.Graph) -> Interface:
    """Names, types and shapes of the graph's inputs and outputs, in order."""
    return tuple(map(_signature, graph.inputs)), tuple(map(_signature, graph.outputs))


def _signature(value: ir.Value) -> str:
    return f"{value.name}: {value.type}{value.shape if value.shape is not None else ''}"
