"""What the rules know about a graph: names of nodes, ranks of values, and what is constant."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx
import onnx_ir as ir

from onnxpq.modelproto import structure

_NOT_FROM_VALUES = frozenset({"Shape", "Size"})
"""Operators whose result on a weight tells nothing of its values."""

_NOT_INFERRED = frozenset({("ai.onnx.ml", "Scaler"), ("ai.onnx.ml", "Normalizer")})
"""Operators of float32 results in the shape of their input where ONNX's shape inference stops."""


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
        tensor = _constant(self.value)
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
        labels: a unique name for every node of the main graph: its own, or that of its first output.
        ranks: rank by value name, as far as ONNX's shape inference finds it.
        origins: for every value that is constant or computed from constants only, what it comes from.
    """

    labels: Mapping[ir.Node, str]
    ranks: Mapping[str, int]
    origins: Mapping[ir.Value, Origin]

    def origin(self, value: ir.Value | None) -> Origin | None:
        """Where the value comes from, if it is constant or computed from constants only."""
        return None if value is None else self.origins.get(value)

    def constant(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The tensor of a value that is a constant which no caller can replace."""
        origin = self.origin(value)
        return None if origin is None or origin.steps or origin.is_overridable else origin.tensor

    def rank(self, value: ir.Value) -> int | None:
        """Rank of a value; None where it is not known."""
        return len(value.shape) if value.shape is not None else self.ranks.get(value.name or "")


def describe(model: ir.Model) -> Context:
    """Gathers the facts about a model. The model is not changed, and must keep its values while they are used."""
    return Context(labels=_labels(model.graph), ranks=_ranks(model), origins=_origins(model))


def _labels(graph: ir.Graph) -> dict[ir.Node, str]:
    counts = Counter(node.name for node in graph if node.name)
    labels = {node: node.name for node in graph if node.name and counts[node.name] == 1}
    taken = set(labels.values())
    for node in graph:
        if node in labels:
            continue
        label = next((output.name for output in node.outputs if output.name), node.op_type)
        while label in taken:
            label += "'"
        labels[node] = label
        taken.add(label)
    return labels


def _ranks(model: ir.Model) -> dict[str, int]:
    proto = structure(model)
    while True:
        graph = onnx.shape_inference.infer_shapes(proto).graph
        ranks = {
            info.name: len(info.type.tensor_type.shape.dim)
            for info in (*graph.input, *graph.value_info, *graph.output)
            if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape")
        }
        stops = [
            node
            for node in graph.node
            if (node.domain, node.op_type) in _NOT_INFERRED and node.input[0] in ranks and node.output[0] not in ranks
        ]
        if not stops:
            return ranks
        proto.graph.value_info.extend(
            onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [None] * ranks[node.input[0]])
            for node in stops
        )


def _origins(model: ir.Model) -> dict[ir.Value, Origin]:
    origins: dict[ir.Value, Origin] = {}
    for graph in model.graphs():
        origins.update(
            (value, Origin(value, ())) for value in graph.initializers.values() if _constant(value) is not None
        )
    for node in _all_nodes(model):
        if node.op_type == "Constant" and node.domain == "":
            origins.update((value, Origin(value, ())) for value in node.outputs if _constant(value) is not None)
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


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain != "":
        return None
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None or attribute.is_ref() or attribute.type == ir.AttributeType.SPARSE_TENSOR:
        return None
    return ir.convenience.get_const_tensor(value)
