"""What the rules know about a graph: names of nodes, ranks of values, and what is constant."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import onnx
import onnx_ir as ir

from onnxpq.graph import constant, graphs_of, structure

Shape: TypeAlias = tuple[int | str | None, ...]
"""Sizes; a name or None where a size is not known."""

_NOT_FROM_VALUES = frozenset({"Shape", "Size"})
"""Operators whose result on a weight tells nothing of its values."""

_TO_FLOAT = frozenset({("ai.onnx.ml", "Scaler"), ("ai.onnx.ml", "Normalizer")})
"""Operators of float32 results in the shape of their first input where ONNX's shape inference stops."""

_SHAPE_KEPT = frozenset(
    {("", name) for name in ("Affine", "ImageScaler", "LayerNormalization", "ParametricSoftplus", "ScaledTanh")}
    | {("", name) for name in ("SimplifiedLayerNormalization", "ThresholdedRelu")}
    | {("com.microsoft", name) for name in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")}
    | {("com.microsoft", name) for name in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")}
)
"""The same for results in the type of the input: operators of onnxruntime's."""


@dataclass(frozen=True)
class Origin:
    """The constant that a value is, or is computed from.

    Attributes:
        value: the initializer or the output of a Constant node; the largest, where several are combined.
        steps: operators between it and the value, e.g. ("Transpose",); empty where the value is the constant itself.
    """

    value: ir.Value
    steps: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the constant."""
        return self.value.name or ""

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The constant's content, with the constant's name."""
        tensor = constant(self.value)
        if tensor is None:
            raise LookupError(f"The value '{self.name}' is not a constant.")
        return tensor

    @property
    def is_overridable(self) -> bool:
        """Whether a caller of the model may replace the constant: it is an initializer and a graph input."""
        return self.value.is_graph_input()


@dataclass(frozen=True)
class Context:
    """Facts about a model that hold while its nodes are matched and rewritten one by one.

    Attributes:
        labels: a unique name for every node of the graph and its subgraphs: its own, or that of its first output.
        places: for every node of a subgraph, which one: labels of the nodes around it and names of their attributes.
        shapes: by value name, as far as ONNX's shape inference finds them.
        origins: for every value that is constant or computed from constants only, what it comes from.
    """

    labels: Mapping[ir.Node, str]
    places: Mapping[ir.Node, str]
    shapes: Mapping[str, Shape]
    origins: Mapping[ir.Value, Origin]

    def origin(self, value: ir.Value | None) -> Origin | None:
        """Where the value comes from, if it is constant or computed from constants only."""
        return None if value is None else self.origins.get(value)

    def constant(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The tensor of a value that is a constant which no caller can replace."""
        origin = self.origin(value)
        return None if origin is None or origin.steps or origin.is_overridable else origin.tensor

    def shape(self, value: ir.Value) -> Shape | None:
        """Shape of a value; None where not even its rank is known."""
        if value.shape is None:
            return self.shapes.get(value.name or "")
        return tuple(size if isinstance(size, int) else size.value for size in value.shape)

    def rank(self, value: ir.Value) -> int | None:
        """Rank of a value; None where it is not known."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def place(self, node: ir.Node) -> str:
        """The subgraph that a node lies in; empty for the main graph."""
        return self.places.get(node, "")


def describe(model: ir.Model) -> Context:
    """Gathers the facts about a model in which names of values are unique (`onnxpq.graph.preparing.prepare`).

    The model is not changed, and must keep its values while they are used.
    """
    labels = _labels(list(model.graph.all_nodes()))
    return Context(
        labels=labels, places=dict(_places(model.graph, "", labels)), shapes=_shapes(model), origins=_origins(model)
    )


def _labels(nodes: list[ir.Node]) -> dict[ir.Node, str]:
    counts = Counter(node.name for node in nodes if node.name)
    labels = {node: node.name for node in nodes if node.name and counts[node.name] == 1}
    taken = set(labels.values())
    for node in nodes:
        if node in labels:
            continue
        label = next((output.name for output in node.outputs if output.name), node.op_type)
        while label in taken:
            label += "'"
        labels[node] = label
        taken.add(label)
    return labels


def _places(graph: ir.Graph, place: str, labels: Mapping[ir.Node, str]) -> Iterator[tuple[ir.Node, str]]:
    for node in graph:
        if place:
            yield node, place
        for attribute in node.attributes.values():
            for number, subgraph in enumerate(graphs_of(attribute)):
                inner = f"{labels[node]}.{attribute.name}" + (f"[{number}]" if number else "")
                yield from _places(subgraph, f"{place}/{inner}" if place else inner, labels)


def _shapes(model: ir.Model) -> dict[str, Shape]:
    proto = structure(model)
    told: set[str] = set()
    while True:
        graph = onnx.shape_inference.infer_shapes(proto).graph
        infos = {info.name: info for info in _infos(graph) if _is_shaped_tensor(info)}
        kept = [node for node in graph.node if (node.domain, node.op_type) in _TO_FLOAT | _SHAPE_KEPT]
        stops = [node for node in kept if node.input[0] in infos and node.output[0] not in infos.keys() | told]
        if not stops:
            return {name: _shape(info) for name, info in infos.items()}
        told |= {node.output[0] for node in stops}
        for node in stops:
            info = proto.graph.value_info.add(name=node.output[0], type=infos[node.input[0]].type)
            if (node.domain, node.op_type) in _TO_FLOAT:
                info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.value_info, *graph.output)
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _infos(subgraph)


def _is_shaped_tensor(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.HasField("tensor_type")) and bool(info.type.tensor_type.HasField("shape"))


def _shape(info: onnx.ValueInfoProto) -> Shape:
    sizes = info.type.tensor_type.shape.dim
    return tuple(s.dim_value if s.HasField("dim_value") else s.dim_param or None for s in sizes)


def _origins(model: ir.Model) -> dict[ir.Value, Origin]:
    origins: dict[ir.Value, Origin] = {}
    for graph in model.graphs():
        origins.update(
            (value, Origin(value, ())) for value in graph.initializers.values() if constant(value) is not None
        )
    for node in _all_nodes(model):
        if node.op_type == "Constant" and node.domain == "":
            origins.update((value, Origin(value, ())) for value in node.outputs if constant(value) is not None)
            continue
        sources = [origins.get(value) for value in node.inputs if value is not None]
        known = [source for source in sources if source is not None]
        if known and len(known) == len(sources) and _keeps_values(node):
            largest = max(known, key=lambda source: prod(source.tensor.shape.numpy()))
            origins.update((value, Origin(largest.value, (*largest.steps, node.op_type))) for value in node.outputs)
    return origins


def _keeps_values(node: ir.Node) -> bool:
    # A node with subgraphs also reads values that are not its inputs.
    subgraph = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
    return not subgraph and node.op_type not in _NOT_FROM_VALUES


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    containers: Iterable[ir.Graph | ir.Function] = (model.graph, *model.functions.values())
    for container in containers:
        yield from container.all_nodes()
