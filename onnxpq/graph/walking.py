"""Questions about nodes and the graphs that they hold."""

from collections.abc import Iterator, Sequence

import onnx_ir as ir


def node_label(node: ir.Node) -> str:
    """The name by which messages and reports know a node: its own, or else that of its first output."""
    return node.name or next((output.name for output in node.outputs if output.name), None) or node.op_type


def used_values(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads: its inputs, and what its subgraphs take from outside of themselves."""
    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        for graph in graphs_of(attribute):
            values.extend(_captured(graph))
    return values


def graphs_of(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """The graphs that an attribute holds."""
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


def _captured(graph: ir.Graph) -> list[ir.Value]:
    own = {*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)}
    used = [value for node in graph for value in used_values(node)]
    return [value for value in (*used, *graph.outputs) if value not in own]


def subgraphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node holds itself, not those in them."""
    for attribute in node.attributes.values():
        yield from graphs_of(attribute)


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node lies in.

    Raises:
        LookupError: it lies in none, or in a function.
    """
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise LookupError(f"Node '{node_label(node)}' lies in no graph.")
    return graph
