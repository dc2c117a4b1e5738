"""Changes to a graph that rules share: new names, new constants, new nodes in the place of old ones."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.graph import Layer, values_of
from onnxpq.operators import (
    CONV_OP_TYPE,
    DOMAIN,
    INTEGER_OP_TYPE,
    LOOKUP_OP_TYPE,
    OP_TYPE,
    OP_TYPES,
    WEIGHT_OP_TYPE,
)
from onnxpq.operators.body import CAST_LIKE_OPSET, MIN_INTEGER_OPSET, Stored
from onnxpq.operators.schema import ATTR_FAST
from onnxpq.pq import PQTensor, pack_codes
from onnxpq.rewriting.functions import weight_attributes
from onnxpq.rewriting.rules.weights import ConstantBias


class Editor:
    """Adds to one graph; every name is new to the model.

    Constants are put into the graph whose nodes use them, be it a subgraph: onnxruntime 1.17 tells an operator in a
    subgraph that what it takes from outside is not constant (1.32 does not).

    Attributes:
        graph: the graph, which the methods change.
        opset: of ai.onnx, which the new nodes are written in.
        takes_half: a PQMatMul was made whose X is float16.
    """

    def __init__(self, graph: ir.Graph, opset: int, names: set[str] | None = None) -> None:
        """Prepare to edit.

        Args:
            graph: the graph.
            opset: the model's version of ai.onnx.
            names: those that are taken, which several editors of a model share; default: those of the graph.
        """
        self.graph = graph
        self.opset = opset
        self.takes_half = False
        self._names = names_of(graph) if names is None else names
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

    def bias(self, layer: Layer, bias: ConstantBias | None, out_features: int) -> ir.Value:
        """The initializer [out] of a layer's bias: the model's own where it fits, else a new one.

        Zeros stand for no bias: PQMatMul requires the input, since a function body cannot test for absence.
        """
        name = f"{layer.weight}.bias"
        if bias is None:
            return self.shared_constant(("zeros", out_features), name, lambda: np.zeros(out_features, np.float32))
        if not bias.is_source:
            return self.constant(name, bias.row)
        if bias.source.graph is self.graph:
            return bias.source
        return self.shared_constant(("bias", bias.source), name, lambda: _array(bias.source))

    def layer(
        self,
        layer: Layer,
        x: ir.Value,
        tensor: PQTensor,
        bias: ConstantBias | None = None,
        *,
        dtype: ir.DataType,
        alpha: float = 1.0,
    ) -> list[ir.Node]:
        """Nodes, not yet in the graph, of which the last one gives ``x @ (alpha * W).T + bias`` in the type of x.

        Args:
            layer: gives the name of the PQMatMul and of its constants.
            x: [..., in].
            tensor: W, [out, in].
            bias: zeros where None.
            dtype: element type of x. PQMatMul takes float32, and float16 where its function body can have CastLike;
                other types are cast before and after.
            alpha: folded into the scales.
        """
        is_taken = dtype == ir.DataType.FLOAT or (dtype == ir.DataType.FLOAT16 and self.opset >= CAST_LIKE_OPSET)
        self.takes_half |= is_taken and dtype == ir.DataType.FLOAT16
        before = [] if is_taken else [self.cast(x, ir.DataType.FLOAT, f"{layer.node}.float")]
        source = before[-1].outputs[0] if before else x
        constants = self._constants(layer.weight, tensor, alpha)
        constants.append(self.bias(layer, bias, tensor.out_features))
        op_type = INTEGER_OP_TYPE if tensor.multiplies_int8 and self.opset >= MIN_INTEGER_OPSET else OP_TYPE
        attributes = [*_attributes(tensor), *([ir.AttrInt64(ATTR_FAST, 1)] if tensor.fast else [])]
        product = ir.Node(DOMAIN, op_type, [source, *constants], attributes, name=layer.node)
        product.outputs[0].name = self.unique(f"{layer.node}.output")
        if is_taken:
            return [product]
        return [*before, product, self.cast(product.outputs[0], dtype, f"{layer.node}.cast")]

    def lookup(self, layer: Layer, rows: ir.Value, tensor: PQTensor, *, dtype: ir.DataType) -> list[ir.Node]:
        """Nodes, not yet in the graph, of which the last one gives ``W[rows]`` in the element type `dtype`.

        Args:
            layer: gives the name of the PQGather and of its constants.
            rows: integers [...].
            tensor: W, [out, in].
            dtype: PQGather gives float32; for other types it is cast.
        """
        inputs = [rows, *self._constants(layer.weight, tensor, 1.0)]
        lookup = ir.Node(DOMAIN, LOOKUP_OP_TYPE, inputs, _attributes(tensor), name=layer.node)
        lookup.outputs[0].name = self.unique(f"{layer.node}.output")
        if dtype == ir.DataType.FLOAT:
            return [lookup]
        return [lookup, self.cast(lookup.outputs[0], dtype, f"{layer.node}.cast")]

    def convolution(
        self,
        layer: Layer,
        x: ir.Value,
        tensor: PQTensor,
        bias: ir.Value | None,
        stored: Stored,
        attributes: Mapping[str, ir.Attr],
    ) -> ir.Node:
        """A PQConv, not yet in the graph, of a kernel and the attributes of its Conv; the bias may be missing."""
        inputs = [x, *self._constants(layer.weight, tensor, 1.0), *([] if bias is None else [bias])]
        own = [*_attributes(tensor, stored), *attributes.values()]
        node = ir.Node(DOMAIN, CONV_OP_TYPE, inputs, own, name=layer.node)
        node.outputs[0].name = self.unique(f"{layer.node}.output")
        return node

    def stored(self, layer: Layer, tensor: PQTensor, stored: Stored) -> ir.Value:
        """What a PQWeight gives, which comes first in the graph; nodes of a graph that share a weight share it."""
        key = ("stored", layer.weight)
        if key not in self._shared:
            inputs = self._constants(layer.weight, tensor, 1.0)
            node = ir.Node(
                DOMAIN, WEIGHT_OP_TYPE, inputs, _attributes(tensor, stored), name=self.unique(f"{layer.weight}.pq")
            )
            output = node.outputs[0]
            output.name = self.unique(f"{layer.weight}.decoded")
            output.shape, output.type = ir.Shape(stored.shape), ir.TensorType(stored.dtype)
            self.graph.insert_before(self.graph[0], node)
            self._shared[key] = output
        return self._shared[key]

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
        """A Cast to an element type."""
        return self.node("Cast", [value], name, [ir.AttrInt64("to", int(dtype))])

    def _constants(self, weight: str, tensor: PQTensor, alpha: float) -> list[ir.Value]:
        """Codebooks, codes and scales. The matrices of a stack have codes of their own and codebooks in common."""
        codes, scales = f"{weight}.codes", f"{weight}.scales"
        return [
            self.shared_constant(id(tensor.codebooks), f"{weight}.codebooks", lambda: tensor.codebooks),
            self.shared_constant(codes, codes, lambda: pack_codes(tensor.codes, tensor.codewords)),
            self.shared_constant((scales, alpha), scales, lambda: _scaled(tensor, alpha)),
        ]

    def integers(self, numbers: Sequence[int], name: str) -> ir.Value:
        """An int64 constant."""
        return self.shared_constant(("integers", *numbers), name, lambda: np.array(numbers, np.int64))

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, attributes: Sequence[ir.Attr] = (), outputs: int = 1
    ) -> ir.Node:
        """A node of ai.onnx, not yet in the graph, that is named after `name`."""
        node = ir.Node("", op_type, inputs, attributes, num_outputs=outputs, name=self.unique(name))
        for output in node.outputs:
            output.name = self.unique(f"{node.name}.output")
        return node

    def transpose(self, value: ir.Value, perm: Sequence[int], name: str) -> ir.Node:
        """A Transpose."""
        return self.node("Transpose", [value], name, [ir.AttrInt64s("perm", list(perm))])

    def replace(self, old: Sequence[ir.Node], new: Sequence[ir.Node]) -> None:
        """Puts the nodes `new` in the place of `old`, a chain in which only the last node's output is used elsewhere.

        The last new node's output takes over the name, the type and the uses of the last old one's. Our operator
        among the new nodes takes over the first old node's documentation and metadata.
        """
        old_value, new_value = old[-1].outputs[0], new[-1].outputs[0]
        new_value.doc_string = old_value.doc_string
        new_value.metadata_props.update(old_value.metadata_props)
        new_value.meta.update(old_value.meta)
        for node in new:
            if node.domain == DOMAIN and node.op_type in OP_TYPES:
                node.doc_string = old[0].doc_string
                node.metadata_props.update(old[0].metadata_props)
        ir.convenience.replace_nodes_and_values(self.graph, old[-1], old, new, [old_value], [new_value])


def names_of(graph: ir.Graph) -> set[str]:
    """Names of all values and nodes of a graph and its subgraphs."""
    return set(_names(graph))


def _attributes(tensor: PQTensor, stored: Stored | None = None) -> list[ir.Attr]:
    return weight_attributes(tensor.out_features, tensor.in_features, stored)


def _scaled(tensor: PQTensor, alpha: float) -> NDArray[np.generic]:
    return (np.float64(alpha) * tensor.scales).astype(np.float32)


def _array(value: ir.Value) -> NDArray[np.generic]:
    array = values_of(value)
    if array is None:
        raise LookupError(f"The value '{value.name}' is not a constant.")
    return array


def _names(graph: ir.Graph) -> Iterator[str]:
    for part in (graph, *graph.subgraphs()):
        yield from (value.name for value in part.inputs if value.name)
        yield from (name for name in part.initializers if name)
        for node in part:
            yield node.name or ""
            yield from (output.name for output in node.outputs if output.name)
