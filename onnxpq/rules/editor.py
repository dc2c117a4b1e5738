"""Changes to a graph that rules share: new names, new constants, new nodes in the place of old ones."""

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.function_body import node_attributes
from onnxpq.layers import Layer
from onnxpq.opschema import DOMAIN, OP_TYPE
from onnxpq.pq.packing import pack_codes
from onnxpq.pq.tensor import PQTensor
from onnxpq.rules.weights import ConstantBias


class Editor:
    """Adds to one graph; every name is new to the graph and its subgraphs.

    Attributes:
        graph: the graph, which the methods change.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._names = set(_names(graph))
        self._shared: dict[Hashable, ir.Value] = {}

    def unique(self, name: str) -> str:
        """`name`, or `name` with a number where it is taken; reserved from now on."""
        candidate, number = name, 0
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """A new initializer of a name like `name`."""
        tensor = ir.tensor(np.asarray(array, order="C"), name=self.unique(name))
        shape = ir.Shape(array.shape)
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def shared_constant(self, key: Hashable, name: str, make: Callable[[], NDArray[np.generic]]) -> ir.Value:
        """The initializer made for `key` before, or a new one: nodes that share a weight share what replaces it."""
        if key not in self._shared:
            self._shared[key] = self.constant(name, make())
        return self._shared[key]

    def bias(self, layer: Layer, bias: ConstantBias | None) -> ir.Value:
        """The initializer [out] of a layer's bias: the model's own where it fits, else a new one.

        Zeros stand for no bias: PQMatMul requires the input, since a function body cannot test for absence.
        """
        name, out_features = f"{layer.weight}.bias", layer.out_features
        if bias is None:
            return self.shared_constant(("zeros", out_features), name, lambda: np.zeros(out_features, np.float32))
        return bias.source if bias.is_source else self.constant(name, bias.row)

    def pq_matmul(
        self, layer: Layer, x: ir.Value, tensor: PQTensor, bias: ConstantBias | None, *, alpha: float = 1.0
    ) -> ir.Node:
        """A PQMatMul node, not yet in the graph, that computes ``x @ (alpha * W).T + bias``.

        Args:
            layer: gives the node's name and the names of its constants.
            x: [..., in] float32.
            tensor: W, [out, in].
            bias: zeros where None.
            alpha: folded into the scales.
        """
        weight = layer.weight
        parts = (
            ("codebooks", (), lambda: tensor.codebooks),
            ("codes", (), lambda: pack_codes(tensor.codes, tensor.codewords)),
            ("scales", (alpha,), lambda: (np.float64(alpha) * tensor.scales).astype(np.float32)),
        )
        constants = [self.shared_constant((weight, part, *key), f"{weight}.{part}", make) for part, key, make in parts]
        attributes = node_attributes(tensor.in_features, tensor.codewords, fast=tensor.fast)
        return ir.Node(DOMAIN, OP_TYPE, [x, *constants, self.bias(layer, bias)], attributes, name=layer.node)

    def node(self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: ir.Attr) -> ir.Node:
        """A node of ai.onnx with one output, not yet in the graph, that is named after `name`."""
        node = ir.Node("", op_type, inputs, attributes.values(), name=self.unique(name))
        node.outputs[0].name = self.unique(f"{node.name}.output")
        return node

    def replace(self, old: Sequence[ir.Node], new: Sequence[ir.Node]) -> None:
        """Puts the nodes `new` in the place of `old`, a chain in which only the last node's output is used elsewhere.

        The last new node's output takes over the name, the type and the uses of the last old one's. The PQMatMul among
        the new nodes takes over the first old node's documentation and metadata.
        """
        old_value, new_value = old[-1].outputs[0], new[-1].outputs[0]
        new_value.doc_string = old_value.doc_string
        new_value.metadata_props.update(old_value.metadata_props)
        new_value.meta.update(old_value.meta)
        for node in new:
            if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
                node.doc_string = old[0].doc_string
                node.metadata_props.update(old[0].metadata_props)
                if node.outputs[0] is not new_value:
                    node.outputs[0].name = self.unique(f"{node.name}.output")
        ir.convenience.replace_nodes_and_values(self.graph, old[-1], old, new, [old_value], [new_value])


def _names(graph: ir.Graph) -> Iterator[str]:
    for part in (graph, *graph.subgraphs()):
        yield from (value.name for value in part.inputs if value.name)
        yield from (name for name in part.initializers if name)
        for node in part:
            yield node.name or ""
            yield from (output.name for output in node.outputs if output.name)
