"""Questions about protobufs of models: their graphs, nodes and operator sets."""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import onnx

Container: TypeAlias = onnx.ModelProto | onnx.FunctionProto
"""What has operator sets of its own."""

Scope: TypeAlias = onnx.GraphProto | onnx.FunctionProto
"""What has nodes of its own."""


def is_default(domain: str) -> bool:
    """Whether a domain is ONNX's own, which has two names."""
    return domain in ("", "ai.onnx")


def version_of(container: Container, domain: str) -> int | None:
    """The version of a domain that a model or a function imports; None where it does not."""
    names = ("", "ai.onnx") if is_default(domain) else (domain,)
    return max((entry.version for entry in container.opset_import if entry.domain in names), default=None)


def subgraphs_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The graphs in nodes, and the graphs in these."""
    for node in nodes:
        for graph in graphs_in(node):
            yield graph
            yield from subgraphs_of(graph.node)


def graphs_in(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds itself."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of the graphs in them."""
    for node in nodes:
        yield node
        for graph in graphs_in(node):
            yield from nodes_of(graph.node)


def graphs_of(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The main graph and all subgraphs, those in functions too."""
    in_functions = (graph for function in proto.functions for graph in subgraphs_of(function.node))
    return [proto.graph, *subgraphs_of(proto.graph.node), *in_functions]


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, those of subgraphs and functions too."""
    for scope in (proto.graph, *proto.functions):
        yield from nodes_of(scope.node)


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor of a model: initializers, and attributes of nodes."""
    for graph in graphs_of(proto):
        yield from graph.initializer
    for node in all_nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
