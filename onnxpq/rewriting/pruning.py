"""What a change to a graph leaves without use."""

import onnx_ir as ir


def alive(model: ir.Model) -> set[ir.Node]:
    """The nodes whose results are used; those that a user left without use stay where they are."""
    return {node for node in model.graph.all_nodes() if _is_used(node)}


def remove_dead(model: ir.Model, alive: set[ir.Node]) -> None:
    """Remove the nodes among `alive` that nobody uses any more, and all unused initializers, in place."""
    # A subgraph comes after the graph that it lies in, and uses values of it.
    for graph in reversed(list(model.graphs())):
        for node in reversed(graph):
            if node in alive and not _is_used(node):
                graph.remove(node, safe=True)
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                del graph.initializers[name]


def _is_used(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)
